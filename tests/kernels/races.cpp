// A race detector for kernels: g++ -fsanitize=thread puts a call before every memory access, and these are the calls.
//
// Within a launch, a word that one thread writes plainly may be touched by another only if a barrier of their block lies between;
// between blocks nothing lies. Atomics and volatile accesses may meet each other (their results are the tests' affair). Shared
// memory is forgotten when a block begins. Compiled without the sanitizer; used with one OS thread.
#include <link.h>

#include <cstdint>
#include <unordered_map>

namespace {
constexpr unsigned MANY = 0xffffffffu;
struct Access {
  unsigned block, thread, epoch;  // block 0: none yet
};
struct Word {
  Access writer, seen;
};
Access now;          // who runs: number of the launch's block and thread, from 1; thread 0 outside kernels
const char* stack;   // of the thread that runs, where it has its own
uintptr_t stack_size;
std::unordered_map<uintptr_t, Word> words, shared_words;
uintptr_t shared_from, shared_size;
unsigned n_races = 0;

int find_shared(dl_phdr_info* info, size_t, void*) {  // __shared__ variables are thread_local ones of this library
  bool ours = false;
  uintptr_t size = 0;
  for (int k = 0; k < info->dlpi_phnum; k++) {
    const auto& part = info->dlpi_phdr[k];
    const uintptr_t from = info->dlpi_addr + part.p_vaddr, at = reinterpret_cast<uintptr_t>(&find_shared);
    ours |= part.p_type == PT_LOAD && at >= from && at < from + part.p_memsz;
    if (part.p_type == PT_TLS) size = part.p_memsz;
  }
  if (!ours) return 0;
  shared_from = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
  shared_size = shared_from ? size : 0;
  return 1;
}

bool unordered(const Access& before) {
  return before.block && (before.block != now.block || (before.epoch == now.epoch && before.thread != now.thread));
}

void note(const void* address, bool plain_write) {
  if (!now.thread) return;
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  const char here = 0;
  const uintptr_t from = reinterpret_cast<uintptr_t>(stack ? stack : &here - 65536);
  if (at - from < (stack ? stack_size : 131072)) return;  // a thread's own variables
  Word& w = (at - shared_from < shared_size ? shared_words : words)[at];
  n_races += unordered(w.writer) || (plain_write && unordered(w.seen));
  if (plain_write) w.writer = now;
  if (w.seen.block && w.seen.block != now.block) {
    w.seen.block = MANY;
  } else if (w.seen.block == now.block && w.seen.epoch == now.epoch && w.seen.thread != now.thread) {
    w.seen.thread = MANY;
  } else {
    w.seen = now;
  }
}
}  // namespace

extern "C" {
void race_begin() {
  static thread_local volatile char touched;  // the loader makes a library's thread_local variables when one is first used
  touched = 1;
  words.clear();
  shared_words.clear();
  dl_iterate_phdr(find_shared, nullptr);
  now = {1, 0, 1};
}
void race_block() {
  shared_words.clear();
  now = {now.block + 1, 0, 1};
}
void race_barrier() { now.epoch++; }
void race_thread_is(unsigned number, const char* its_stack, unsigned long size) {
  now.thread = number;
  stack = its_stack;
  stack_size = size;
}
unsigned race_count() { return n_races; }
void race_note(const void* address) { note(address, false); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define ACCESS(n) \
  void __tsan_read##n(void* a) { note(a, false); } \
  void __tsan_write##n(void* a) { note(a, true); } \
  void __tsan_unaligned_read##n(void* a) { note(a, false); } \
  void __tsan_unaligned_write##n(void* a) { note(a, true); } \
  void __tsan_volatile_read##n(void* a) { note(a, false); } \
  void __tsan_volatile_write##n(void* a) { note(a, false); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void*, unsigned long) {}
void __tsan_write_range(void*, unsigned long) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
