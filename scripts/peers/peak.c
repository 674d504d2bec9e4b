// What one core can do at most, while others do the same: multiply-adds in registers, no memory.
//
//     cc -O2 -pthread -o peak scripts/peers/peak.c && ./peak THREADS SECONDS
//
// Prints one JSON object: GFLOP/s per core (a multiply-add is two) of f32 FMA, of the bf16 dot
// product of AVX-512 and of bf16 AMX tiles; null where the machine has no such instruction.
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef double kernel(long rounds); // returns the FLOP done

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

#define TWELVE(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11)

// Twelve chains hide the latency of two FMAs per cycle. The empty asm keeps the compiler from folding.
__attribute__((target("avx2,fma"))) static double fma_avx2(long rounds) {
    __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(1e-3f);
#define INIT(i) __m256 c##i = _mm256_set1_ps(i);
#define STEP(i) c##i = _mm256_fmadd_ps(c##i, a, b);
#define KEEP(i) __asm__ volatile("" : "+x"(c##i));
    TWELVE(INIT)
    for (long r = 0; r < rounds; r++) {
        TWELVE(STEP)
        TWELVE(KEEP)
    }
#undef INIT
#undef STEP
#undef KEEP
    return rounds * 12.0 * 8 * 2;
}

__attribute__((target("avx512f"))) static double fma_avx512(long rounds) {
    __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(1e-3f);
#define INIT(i) __m512 c##i = _mm512_set1_ps(i);
#define STEP(i) c##i = _mm512_fmadd_ps(c##i, a, b);
#define KEEP(i) __asm__ volatile("" : "+v"(c##i));
    TWELVE(INIT)
    for (long r = 0; r < rounds; r++) {
        TWELVE(STEP)
        TWELVE(KEEP)
    }
#undef INIT
#undef STEP
    return rounds * 12.0 * 16 * 2;
}

__attribute__((target("avx512f,avx512bf16"))) static double dot_bf16(long rounds) {
    __m512bh a = (__m512bh)_mm512_set1_epi32(0x3c003c00), b = a; // small numbers
#define INIT(i) __m512 c##i = _mm512_set1_ps(i);
#define STEP(i) c##i = _mm512_dpbf16_ps(c##i, a, b);
    TWELVE(INIT)
    for (long r = 0; r < rounds; r++) {
        TWELVE(STEP)
        TWELVE(KEEP)
    }
#undef INIT
#undef STEP
#undef KEEP
    return rounds * 12.0 * 32 * 2;
}

#if defined(__GNUC__) && __GNUC__ >= 11
#define HAS_TILES 1
__attribute__((target("amx-tile,amx-bf16"))) static double tiles_bf16(long rounds) {
    static const struct {
        unsigned char palette, start, zero[14];
        unsigned short bytes[16];
        unsigned char rows[16];
    } config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (long r = 0; r < rounds; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return rounds * 4.0 * 16 * 16 * 32 * 2;
}
#endif

struct job {
    kernel *run;
    double seconds, rate;
    pthread_barrier_t *together;
};

static void *work(void *pointer) {
    struct job *job = pointer;
    double flop = 0, start, took;
    job->run(100000); // wakes the units
    pthread_barrier_wait(job->together);
    start = now();
    do
        flop += job->run(20000);
    while ((took = now() - start) < job->seconds);
    job->rate = flop / took * 1e-9;
    return 0;
}

static void measure(const char *name, kernel *run, int threads, double seconds, const char *end) {
    pthread_barrier_t together;
    struct job jobs[threads];
    pthread_t ids[threads];
    double sum = 0;
    if (!run) {
        printf("\"%s\": null%s", name, end);
        return;
    }
    pthread_barrier_init(&together, 0, threads);
    for (int i = 0; i < threads; i++) {
        jobs[i] = (struct job){run, seconds, 0, &together};
        if (pthread_create(&ids[i], 0, work, &jobs[i]))
            exit(1);
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(ids[i], 0);
        sum += jobs[i].rate;
    }
    printf("\"%s\": %.1f%s", name, sum / threads, end);
}

int main(int count, char **arguments) {
    int threads = count > 1 ? atoi(arguments[1]) : 1;
    double seconds = count > 2 ? atof(arguments[2]) : 0.2;
    kernel *fma = 0, *dot = 0, *tiles = 0;
    if (threads < 1 || threads > 1024)
        return 2;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("fma"))
        fma = fma_avx2;
    if (__builtin_cpu_supports("avx512f"))
        fma = fma_avx512;
    if (__builtin_cpu_supports("avx512bf16"))
        dot = dot_bf16;
#ifdef HAS_TILES
    // Leaf 7: EDX bit 22 is AMX-BF16. The kernel gives leave to use tiles (18), or does not.
    unsigned a = 7, b, c = 0, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (d >> 22 & 1 && !syscall(SYS_arch_prctl, 0x1023, 18))
        tiles = tiles_bf16;
#endif
    printf("{\"threads\": %d, ", threads);
    measure("f32_fma", fma, threads, seconds, ", ");
    measure("bf16_dot", dot, threads, seconds, ", ");
    measure("bf16_tiles", tiles, threads, seconds, "}\n");
    return 0;
}
