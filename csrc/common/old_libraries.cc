// SPDX-License-Identifier: Apache-2.0
// For the module to load wherever MXNet does: its wheels are manylinux2014, which is glibc 2.17 and
// the libstdc++ of GCC 4.8. Newer headers call a few functions that those do not have yet. Here
// they are, made of functions that every version has. The module gives none of them away
// (module.map), so that they are not taken for those of libstdc++ and glibc elsewhere in the
// process. tests/tools/test_release.py names each symbol that is newer than that.
#include <pthread.h>

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <new>
#include <stdexcept>
#include <string>

#if defined(__GLIBC__) && defined(__GLIBCXX__) && defined(__x86_64__)

// Names, and the list of arguments, are those of the libraries.
// NOLINTBEGIN(bugprone-reserved-identifier,bugprone-std-namespace-modification)
// NOLINTBEGIN(modernize-avoid-variadic-functions,cppcoreguidelines-pro-type-vararg)

// glibc has newer versions of these that do the same: powf no longer knows the errors of SVID, and
// pthread_once has moved to libc, from libpthread, which libgomp and MXNet load in older systems.
__asm__(".symver old_powf, powf@GLIBC_2.2.5");
__asm__(".symver old_pthread_once, pthread_once@GLIBC_2.2.5");
// Named with their version, so that they are those of libstdc++ also where a compiler that does not
// optimize has put a copy of the inline function, which calls what is defined below, beside them.
__asm__(".symver old_copy, _ZNSt15__exception_ptr13exception_ptrC1ERKS0_@CXXABI_1.3.3");
__asm__(".symver old_destroy, _ZNSt15__exception_ptr13exception_ptrD1Ev@CXXABI_1.3.3");

extern "C" {

float old_powf(float base, float exponent) noexcept;
int old_pthread_once(pthread_once_t* once, void (*run)());
// A std::exception_ptr is one pointer.
void old_copy(void** to, void* const* from) noexcept;
void old_destroy(void** pointer) noexcept;

float powf(float base, float exponent) noexcept { return old_powf(base, exponent); }

int pthread_once(pthread_once_t* once, void (*run)()) { return old_pthread_once(once, run); }

// Whether std::shared_ptr may count without atomic operations: never.
extern char __libc_single_threaded;
char __libc_single_threaded = 0;

// exception_ptr::_M_addref and _M_release, which are private.
void add_reference(void** pointer) noexcept
    __asm__("_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
void add_reference(void** pointer) noexcept {
  void* copy;
  old_copy(&copy, pointer);
}

void release(void** pointer) noexcept
    __asm__("_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");
void release(void** pointer) noexcept {
  old_destroy(pointer);
  *pointer = nullptr;
}

}  // extern "C"

namespace std {

// The older string is what it takes: _GLIBCXX_USE_CXX11_ABI is 0.
runtime_error::runtime_error(const char* what) : runtime_error(string(what)) {}
domain_error::domain_error(const char* what) : domain_error(string(what)) {}
invalid_argument::invalid_argument(const char* what) : invalid_argument(string(what)) {}

// What std::bad_array_new_length is derived from.
void __throw_bad_array_new_length() { throw bad_alloc(); }

void __throw_out_of_range_fmt(const char* format, ...) {
  char text[256];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  throw out_of_range(string(text));
}

}  // namespace std

// NOLINTEND(modernize-avoid-variadic-functions,cppcoreguidelines-pro-type-vararg)
// NOLINTEND(bugprone-reserved-identifier,bugprone-std-namespace-modification)

#endif
