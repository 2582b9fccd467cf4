// A race detector for kernels without barriers: g++ -fsanitize=thread puts a call before every memory access, and these are the
// calls. Within a launch, a word that one thread writes plainly may be touched by no other thread. Atomics and volatile accesses
// may meet each other (their results are the tests' affair). Compiled without the sanitizer; used with one OS thread.
#include <cstdint>
#include <unordered_map>

namespace {
unsigned race_thread = 0;  // number of the running CUDA thread, from 1; 0 outside kernels
constexpr unsigned MANY = 0xffffffffu;
struct Word {
  unsigned writer, seen;
};
std::unordered_map<uintptr_t, Word> words;
unsigned n_races = 0;

void note(const void* address, bool plain_write) {
  const unsigned t = race_thread;
  if (!t) return;
  const char here = 0;
  const intptr_t away = reinterpret_cast<intptr_t>(address) - reinterpret_cast<intptr_t>(&here);
  if (away > -65536 && away < 65536) return;  // a thread's own variables
  Word& w = words[reinterpret_cast<uintptr_t>(address)];
  n_races += (w.writer && w.writer != t) || (plain_write && w.seen && w.seen != t);
  if (plain_write) w.writer = t;
  w.seen = w.seen == 0 || w.seen == t ? t : MANY;
}
}  // namespace

extern "C" {
void race_begin() { words.clear(); }
void race_thread_is(unsigned number) { race_thread = number; }
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
