// Counts every byte that torch's allocator on the CPU hands out, whichever thread asks for it or gives it back:
// torch's profiler sees only those of threads that it knows, and gloo's are not among them.
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <unordered_map>

namespace {

constexpr int kParts = 8;

std::mutex guard;
std::unordered_map<void*, std::pair<int64_t, int>> live;  // address -> bytes, part in which it was allocated
int64_t held = 0;
int part = 0;
std::array<int64_t, kParts> peaks{};
std::map<std::pair<int64_t, int>, int64_t> at_peak;  // of the part that is watched: (bytes, part) -> blocks
int watched = -1;
c10::Allocator* inner = nullptr;

void freed(void* address) {
  {
    std::lock_guard<std::mutex> lock(guard);
    auto found = live.find(address);
    if (found != live.end()) {
      held -= found->second.first;
      live.erase(found);
    }
  }
  inner->raw_deallocate(address);
}

struct Counting final : public c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* address = inner->raw_allocate(bytes);
    std::lock_guard<std::mutex> lock(guard);
    if (address != nullptr) {
      live[address] = {static_cast<int64_t>(bytes), part};
      held += static_cast<int64_t>(bytes);
      if (held > peaks[part]) {
        peaks[part] = held;
        if (part == watched) {
          at_peak.clear();
          for (const auto& block : live) at_peak[block.second] += 1;
        }
      }
    }
    return {address, address, &freed, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &freed; }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    default_copy_data(target, source, bytes);
  }
};

Counting counting;

}  // namespace

extern "C" {

void start() {
  inner = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&counting, 255);
}

void begin(int number) {
  std::lock_guard<std::mutex> lock(guard);
  part = number;
  peaks[part] = std::max(peaks[part], held);
}

// The peaks of what comes: of the part that is on, what is held now.
void forget_peaks() {
  std::lock_guard<std::mutex> lock(guard);
  peaks.fill(0);
  peaks[part] = held;
}

void watch(int number) { watched = number; }

int64_t held_bytes() { return held; }

int64_t peak_bytes(int number) { return peaks[number]; }

// Up to `most` rows of (bytes of a block, part in which it was allocated, blocks); how many there are.
int64_t blocks_at_peak(int64_t* rows, int64_t most) {
  int64_t row = 0;
  for (const auto& each : at_peak) {
    if (row < most) {
      rows[3 * row] = each.first.first;
      rows[3 * row + 1] = each.first.second;
      rows[3 * row + 2] = each.second;
    }
    ++row;
  }
  return row;
}
}
