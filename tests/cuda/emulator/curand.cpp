// candle makes a generator of random numbers for each device; nobody asks it for any.
#include "emulator.h"

EMULATED int curandCreateGenerator(void **to, int) {
    *to = new char;
    return 0;
}
EMULATED int curandDestroyGenerator(void *one) {
    delete static_cast<char *>(one);
    return 0;
}
EMULATED int curandSetStream(void *, void *) { return 0; }
EMULATED int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
EMULATED int curandSetGeneratorOffset(void *, unsigned long long) { return 0; }
