/* A libnvidia-ml.so.1 for tests: the real pynvml loads it through LD_LIBRARY_PATH.

   Two devices: an 80 GiB one of compute capability 9.0 and a 16 GiB one of 7.5 that knows no load.
   FAKE_NVML selects what is wrong with the machine:
     no-driver       nvmlInit fails as without a loaded driver
     no-permission   lists of processes are refused
     mig             device 0 is split into two instances, of which one was destroyed again
     lost            device 1 has fallen off the bus */

#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };

#define GIB (1ULL << 30)

typedef struct { const char *uuid, *name; unsigned long long total, used; int major, minor, load; } device_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } process_t;

static device_t devices[] = {
    {"GPU-big", "Fake Big 80GB", 80 * GIB, 5 * GIB, 9, 0, 37},
    {"GPU-small", "Fake Small 16GB", 16 * GIB, 1 * GIB, 7, 5, -1},
    {"MIG-half", "Fake Big 80GB MIG 3g.40gb", 40 * GIB, 0, 9, 0, -1},
};

static const process_t processes[] = {
    {100, 2 * GIB, ~0u, ~0u}, {101, 1 * GIB, ~0u, ~0u}, {102, ~0ULL, ~0u, ~0u}, {103, 1 * GIB, ~0u, ~0u},
};
enum { PROCESSES = sizeof processes / sizeof *processes };

static int mode_is(const char *mode) {
    const char *set = getenv("FAKE_NVML");
    return set && strcmp(set, mode) == 0;
}

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return mode_is("no-driver") ? DRIVER_NOT_LOADED : SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int result) { (void)result; return "a fake error"; }

int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    strncpy(version, "999.10", length);
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t **device) {
    *device = &devices[index];
    return mode_is("lost") && index == 1 ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device_t **device) {
    for (unsigned int i = 0; i < sizeof devices / sizeof *devices; i++)
        if (strcmp(devices[i].uuid, uuid) == 0) {
            *device = &devices[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetMigMode(device_t *device, unsigned int *current, unsigned int *pending) {
    if (device != &devices[0]) return NOT_SUPPORTED;
    *current = *pending = mode_is("mig");
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t *device, unsigned int *count) { (void)device; *count = 2; return SUCCESS; }

int nvmlDeviceGetMigDeviceHandleByIndex(device_t *device, unsigned int index, device_t **instance) {
    (void)device;
    *instance = &devices[2];
    return index == 0 ? NOT_FOUND : SUCCESS;
}

int nvmlDeviceGetUUID(device_t *device, char *uuid, unsigned int length) {
    strncpy(uuid, device->uuid, length);
    return SUCCESS;
}

int nvmlDeviceGetName(device_t *device, char *name, unsigned int length) {
    strncpy(name, device->name, length);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(device_t *device, memory_t *memory) {
    *memory = (memory_t){device->total, device->total - device->used, device->used};
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(device_t *device, int *major, int *minor) {
    *major = device->major;
    *minor = device->minor;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(device_t *device, utilization_t *load) {
    if (device->load < 0) return NOT_SUPPORTED;
    *load = (utilization_t){(unsigned int)device->load, 0};
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device_t *device, unsigned int *count, process_t *found) {
    if (mode_is("no-permission")) return NO_PERMISSION;
    if (device != &devices[0]) { *count = 0; return SUCCESS; }
    if (*count < PROCESSES) { *count = PROCESSES; return INSUFFICIENT_SIZE; }
    memcpy(found, processes, sizeof processes);
    *count = PROCESSES;
    return SUCCESS;
}
