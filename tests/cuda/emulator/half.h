// f16 and bf16 as bits, and their conversions: to nearest, ties to even, NaN stays NaN.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __F16C__
#include <immintrin.h>
#endif

struct f16 {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};

static inline float float_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint32_t bits_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

// Without the instructions; tested against the definition.
static inline float f16_to_float_by_parts(f16 x) {
    uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    if (exponent == 31) return float_of_bits(sign | 0x7f800000 | fraction << 13 | (fraction ? 0x400000 : 0));
    if (exponent) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float small = float(fraction) * 0x1p-24f;
    return sign ? -small : small;
}

static inline f16 f16_of_float_by_parts(float x) {
    uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return {uint16_t(sign | 0x7e00 | (rest >> 13 & 0x3ff))};
    if (rest >= 0x477ff000) return {uint16_t(sign | 0x7c00)};
    if (rest < 0x38800000) {
        // The sum has the last bit of a subnormal where a float has its own.
        uint32_t sum = bits_of_float(float_of_bits(rest) + 0.5f);
        return {uint16_t(sign | (sum - 0x3f000000))};
    }
    return {uint16_t(sign | ((rest + 0xfff + (rest >> 13 & 1) - 0x38000000) >> 13))};
}

static inline float f16_to_float(f16 x) {
#ifdef __F16C__
    return _cvtsh_ss(x.bits);
#else
    return f16_to_float_by_parts(x);
#endif
}

static inline f16 f16_of_float(float x) {
#ifdef __F16C__
    return {_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)};
#else
    return f16_of_float_by_parts(x);
#endif
}

static inline float bf16_to_float(bf16 x) { return float_of_bits(uint32_t(x.bits) << 16); }

static inline bf16 bf16_of_float(float x) {
    uint32_t bits = bits_of_float(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return {uint16_t(bits >> 16 | 0x40)};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
