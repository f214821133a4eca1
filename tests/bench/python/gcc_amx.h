/* GCC 12 declares less memory to be read by AMX's loads than they read: of `ldtilecfg` 8 bytes of 64, of `tileloadd` none. It
   then leaves out the stores of what llama.cpp has them read, and llama.cpp dies of a general protection fault. Included in
   front of every C++ file of it; it changes nothing where the machine has no AMX. */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

static inline void peer_tile_loadconfig(const void *config) {
    __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char(*)[64])config) : "memory");
}
#define _tile_loadconfig peer_tile_loadconfig

#undef _tile_loadd_internal
#define _tile_loadd_internal(dst, base, stride)                                                          \
    __asm__ volatile("{tileloadd\t(%0,%1,1), %%tmm" #dst "|tileloadd\t%%tmm" #dst ", [%0+%1*1]}" ::"r"( \
                         (const void *)(base)),                                                         \
                     "r"((long)(stride))                                                                \
                     : "memory")

#undef _tile_stream_loadd_internal
#define _tile_stream_loadd_internal(dst, base, stride)                                                       \
    __asm__ volatile("{tileloaddt1\t(%0,%1,1), %%tmm" #dst "|tileloaddt1\t%%tmm" #dst ", [%0+%1*1]}" ::"r"( \
                         (const void *)(base)),                                                             \
                     "r"((long)(stride))                                                                    \
                     : "memory")
#endif
