/* A libnvidia-ml.so.1 for tests: the real pynvml loads it through LD_LIBRARY_PATH.

   Two devices: a healthy 80 GiB one of compute capability 9.0, and a 16 GiB one of 7.5 that answers little.
   Words say what is different, in the variable FAKE_NVML and in the file that FAKE_NVML_FILE names. The file
   is read at every call, so a test can change the machine at any time.
     no-driver        nvmlInit fails as without a loaded driver
     old-driver       clock events are known by their old name only
     no-permission    lists of processes are refused
     mig              device 0 is split into two instances, of which one was destroyed again
     lost             device 1 has fallen off the bus
     lost-big         so has device 0
     lost-after=N     device 0 falls off the bus after N more calls about it since nvmlInit
     gone             no UUID is known any more
     refuse=QUERY     this function answers "unknown error"
     process=PID:MIB  a process on device 0 (instead of the usual ones; -1 MiB is unknown, 0:0 means none)
     draws=PID:MIB    the same, as one that draws
     computes=PID:PC  share of the time in which a process on device 0 ran kernels, in percent
     unlisted=MIB     memory of device 0 used by nobody on its list
     throttle=BITS, ecc=COUNT, no-ecc, remap-pending, remap-failed, retire-pending: of device 0 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, FUNCTION_NOT_FOUND = 13, GPU_IS_LOST = 15, UNKNOWN = 999 };

#define MIB (1ULL << 20)
#define GIB (1ULL << 30)
#define BIG (&devices[0])

typedef struct { const char *uuid, *name; unsigned long long total, used; int major, minor, load; } device_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } process_t;
typedef struct { unsigned int pid; unsigned long long stamp; unsigned int sm, memory, enc, dec; } share_t;
typedef struct { char legacy[16]; unsigned int domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;

static device_t devices[] = {
    {"GPU-big", "Fake Big 80GB", 80 * GIB, 5 * GIB, 9, 0, 37},
    {"GPU-small", "Fake Small 16GB", 16 * GIB, 1 * GIB, 7, 5, -1},
    {"MIG-half", "Fake Big 80GB MIG 3g.40gb", 40 * GIB, 0, 9, 0, -1},
};

static const process_t usual[] = {
    {100, 2 * GIB, ~0u, ~0u}, {101, 1 * GIB, ~0u, ~0u}, {102, ~0ULL, ~0u, ~0u}, {103, 1 * GIB, ~0u, ~0u},
};

static char words[4096];
static int calls;

static void read_words(void) {
    const char *set = getenv("FAKE_NVML"), *path = getenv("FAKE_NVML_FILE");
    size_t length = (size_t)snprintf(words, sizeof words / 2, " %s ", set ? set : "");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (file) {
        length += fread(words + length, 1, sizeof words - length - 2, file);
        fclose(file);
    }
    strcpy(words + length, " ");
}

/* The place after the next " NAME" from *place on, NULL if there is none. */
static const char *next_word(const char *name, const char **place) {
    char wanted[64];
    snprintf(wanted, sizeof wanted, " %s", name);
    const char *found = strstr(*place, wanted);
    return found ? (*place = found + strlen(wanted)) : NULL;
}

static int is(const char *name) {
    char wanted[64];
    const char *place = words;
    snprintf(wanted, sizeof wanted, "%s ", name);
    return next_word(wanted, &place) != NULL;
}

static long long number(const char *name, long long otherwise) {
    const char *place = words, *found = next_word(name, &place);
    return found ? strtoll(found, NULL, 0) : otherwise;
}

/* Why the device refuses this query now, SUCCESS if it does not. Called first by every query. */
static int refusal(device_t *device, const char *query) {
    char refused[80];
    read_words();
    snprintf(refused, sizeof refused, "refuse=%s", query);
    if (device == BIG && (is("lost-big") || calls++ >= number("lost-after=", 1000000))) return GPU_IS_LOST;
    if (device == &devices[1] && is("lost")) return GPU_IS_LOST;
    return is(refused) ? UNKNOWN : SUCCESS;
}

#define ASK(device) do { int refused = refusal(device, __func__); if (refused) return refused; } while (0)
#define ASK_BIG(device) do { ASK(device); if ((device) != BIG) return NOT_SUPPORTED; } while (0)

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    read_words();
    calls = 0;
    return is("no-driver") ? DRIVER_NOT_LOADED : SUCCESS;
}
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int result) { (void)result; return "a fake error"; }

int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    ASK(NULL);
    strncpy(version, "999.10", length);
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t **device) {
    ASK(&devices[index]);
    *device = &devices[index];
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device_t **device) {
    for (unsigned int i = 0; i < sizeof devices / sizeof *devices; i++)
        if (strcmp(devices[i].uuid, uuid) == 0) {
            ASK(&devices[i]);
            *device = &devices[i];
            return is("gone") ? NOT_FOUND : SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetMigMode(device_t *device, unsigned int *current, unsigned int *pending) {
    ASK_BIG(device);
    *current = *pending = is("mig");
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t *device, unsigned int *count) {
    ASK_BIG(device);
    *count = 2;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device_t *device, unsigned int index, device_t **instance) {
    ASK_BIG(device);
    *instance = &devices[2];
    return index == 0 ? NOT_FOUND : SUCCESS;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t *instance, device_t **device) {
    ASK(instance);
    *device = BIG;
    return SUCCESS;
}

int nvmlDeviceGetUUID(device_t *device, char *uuid, unsigned int length) {
    ASK(device);
    strncpy(uuid, device->uuid, length);
    return SUCCESS;
}

int nvmlDeviceGetName(device_t *device, char *name, unsigned int length) {
    ASK(device);
    strncpy(name, device->name, length);
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(device_t *device, pci_t *pci) {
    ASK(device);
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", (unsigned int)(device - devices) + 1);
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(device_t *device, int *major, int *minor) {
    ASK(device);
    *major = device->major;
    *minor = device->minor;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(device_t *device, utilization_t *load) {
    ASK(device);
    if (device->load < 0) return NOT_SUPPORTED;
    *load = (utilization_t){(unsigned int)device->load, 0};
    return SUCCESS;
}

/* The words NAME=PID:NUMBER, as pairs. */
static unsigned int pairs(const char *name, long long (*found)[2]) {
    unsigned int count = 0;
    char *end;
    for (const char *place = words; next_word(name, &place) && count < 16; count++) {
        found[count][0] = strtoll(place, &end, 10);
        found[count][1] = strtoll(end + 1, NULL, 10);
    }
    return count;
}

static unsigned int listed(const char *name, process_t *found) {
    long long pair[16][2];
    unsigned int count = pairs(name, pair), kept = 0;
    for (unsigned int i = 0; i < count; i++)
        if (pair[i][0])
            found[kept++] = (process_t){(unsigned int)pair[i][0],
                                        pair[i][1] < 0 ? ~0ULL : (unsigned long long)pair[i][1] * MIB, ~0u, ~0u};
    if (count || strcmp(name, "process=")) return kept;
    memcpy(found, usual, sizeof usual);
    return sizeof usual / sizeof *usual;
}

int nvmlDeviceGetMemoryInfo(device_t *device, memory_t *memory) {
    ASK(device);
    unsigned long long used = device->used;
    long long unlisted = number("unlisted=", -1);
    if (device == BIG && unlisted >= 0) {
        process_t found[16];
        used = (unsigned long long)unlisted * MIB;
        for (unsigned int count = listed("process=", found), i = 0; i < count; i++)
            used += found[i].used == ~0ULL ? 0 : found[i].used;
    }
    *memory = (memory_t){device->total, device->total - used, used};
    return SUCCESS;
}

static int list(device_t *device, const char *name, unsigned int *count, process_t *processes) {
    process_t found[16];
    if (is("no-permission")) return NO_PERMISSION;
    unsigned int size = device == BIG ? listed(name, found) : 0;
    int fits = *count >= size;
    *count = size;
    if (!fits) return INSUFFICIENT_SIZE;
    memcpy(processes, found, size * sizeof *found);
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device_t *device, unsigned int *count, process_t *processes) {
    ASK(device);
    return list(device, "process=", count, processes);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t *device, unsigned int *count, process_t *processes) {
    ASK(device);
    return list(device, "draws=", count, processes);
}

int nvmlDeviceGetProcessUtilization(device_t *device, share_t *shares, unsigned int *count,
                                    unsigned long long since) {
    ASK_BIG(device);
    long long pair[16][2];
    unsigned int size = pairs("computes=", pair);
    if (size == 0) return NOT_FOUND;
    int fits = *count > size;
    *count = size + 1;
    if (!fits) return INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < size; i++)
        shares[i] = (share_t){(unsigned int)pair[i][0], since + 1, (unsigned int)pair[i][1], 0, 0, 0};
    shares[size] = (share_t){12345, 0, 99, 0, 0, 0}; /* drivers return stale entries too */
    return SUCCESS;
}

int nvmlDeviceGetTemperature(device_t *device, int sensor, unsigned int *celsius) {
    (void)sensor;
    ASK_BIG(device);
    *celsius = 45;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(device_t *device, unsigned int *milliwatts) {
    ASK_BIG(device);
    *milliwatts = 310500;
    return SUCCESS;
}

int nvmlDeviceGetEnforcedPowerLimit(device_t *device, unsigned int *milliwatts) {
    ASK_BIG(device);
    *milliwatts = 700000;
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(device_t *device, unsigned long long *millijoules) {
    ASK_BIG(device);
    *millijoules = 5000250;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(device_t *device, int clock, unsigned int *megahertz) {
    ASK_BIG(device);
    *megahertz = clock == 1 ? 1755 : 1;
    return SUCCESS;
}

int nvmlDeviceGetMaxClockInfo(device_t *device, int clock, unsigned int *megahertz) {
    ASK_BIG(device);
    *megahertz = clock == 1 ? 1980 : 1;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(device_t *device, unsigned long long *reasons) {
    ASK_BIG(device);
    *reasons = (unsigned long long)number("throttle=", 0);
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(device_t *device, unsigned long long *reasons) {
    ASK_BIG(device);
    *reasons = (unsigned long long)number("throttle=", 0);
    return is("old-driver") ? FUNCTION_NOT_FOUND : SUCCESS;
}

int nvmlDeviceGetEccMode(device_t *device, unsigned int *current, unsigned int *pending) {
    ASK_BIG(device);
    *current = *pending = !is("no-ecc");
    return SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(device_t *device, int type, int counter, unsigned long long *count) {
    ASK_BIG(device);
    /* Uncorrected since the last reboot, not corrected or over the device's life. */
    *count = type == 1 && counter == 0 ? (unsigned long long)number("ecc=", 0) : 77;
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(device_t *device, unsigned int *corrected, unsigned int *uncorrected,
                              unsigned int *pending, unsigned int *failed) {
    ASK_BIG(device);
    *corrected = *uncorrected = 1;
    *pending = is("remap-pending");
    *failed = is("remap-failed");
    return SUCCESS;
}

int nvmlDeviceGetRetiredPagesPendingStatus(device_t *device, unsigned int *pending) {
    ASK_BIG(device);
    *pending = is("retire-pending");
    return SUCCESS;
}
