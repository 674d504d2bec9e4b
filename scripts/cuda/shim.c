// A library that is looked for when it is first called, and not when the program starts.
//
// A program that is linked with NVIDIA's libraries does not start where they are missing. Linked with
// this it starts everywhere: each function of the library is a stub here that looks for the real one
// when it is first called, first in the folders of CUDA_LIB_PATH, then wherever the loader does. With
// HAUL_CUDA_DEBUG set it says on stderr what it found, and what it did not.
//
// Built once for each library, with these definitions:
//   SONAME   the file
//   BEFORE   files to open before it, where they exist: what it opens by name alone, and would not
//            find in CUDA_LIB_PATH
//   SYMBOLS  a header of FUNCTION(index, kind, name), with kind one of those below
//   ABSENT   the status that functions return if there is no library
//   LACKING  and if the library has no such function
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef __x86_64__
#error "the stubs are written for x86-64; link with the CUDA toolkit's own libraries here"
#endif

enum kind { status, size, text };

static const struct {
    enum kind kind;
    const char *name;
} functions[] = {
#define FUNCTION(index, kind, name) {kind, #name},
#include SYMBOLS
#undef FUNCTION
};

// Where each function is, once it was called. Read by the stubs.
__attribute__((used)) static void *targets[sizeof functions / sizeof *functions];

static pthread_once_t once = PTHREAD_ONCE_INIT;
static void *library;

static int debug(void) { return getenv("HAUL_CUDA_DEBUG") != NULL; }

static void *in_folders(const char *file) {
    char path[4096];
    const char *folders = getenv("CUDA_LIB_PATH");
    while (folders && *folders) {
        int length = (int)strcspn(folders, ":");
        if (length > 0 && snprintf(path, sizeof path, "%.*s/%s", length, folders, file) < (int)sizeof path) {
            void *found = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            if (debug()) fprintf(stderr, "haul: %s: %s\n", path, found ? "taken" : dlerror());
            if (found) return found;
        }
        folders += length;
        if (*folders) folders++;
    }
    return NULL;
}

static void open_library(void) {
    static const char *const before[] = {BEFORE NULL};
    // Never closed: they are what a later dlopen of the same name finds.
    for (const char *const *file = before; *file; file++) in_folders(*file);
    library = in_folders(SONAME);
    if (!library) {
        library = dlopen(SONAME, RTLD_NOW | RTLD_LOCAL);
        if (debug()) fprintf(stderr, "haul: " SONAME ": %s\n", library ? "taken" : dlerror());
    }
}

// What is called in place of a function that is not there.
static int absent(void) { return ABSENT; }
static int lacking(void) { return LACKING; }
static size_t nothing(void) { return 0; }
static const char *silence(void) { return "no " SONAME; }

// Finds a function, on the first call of its stub. Threads may come here at once: they find the same.
__attribute__((used)) static void *resolve(long index) {
    pthread_once(&once, open_library);
    void *target = library ? dlsym(library, functions[index].name) : NULL;
    int found = target != NULL;
    if (!found) {
        switch (functions[index].kind) {
        case size: target = (void *)nothing; break;
        case text: target = (void *)silence; break;
        case status: target = library ? (void *)lacking : (void *)absent; break;
        }
    }
    void *before = __atomic_exchange_n(&targets[index], target, __ATOMIC_ACQ_REL);
    // Once, whichever thread was first.
    if (!found && library && !before && debug())
        fprintf(stderr, "haul: " SONAME " has no %s\n", functions[index].name);
    return target;
}

// Saves the registers that arguments may be in, calls `resolve`, and goes on in what it found. On
// entry of a stub the stack is 8 off a multiple of 16, and six pushes leave it so; a call needs a
// multiple.
__asm__(
    ".text\n"
    "slow:\n"
    "  pushq %rdi\n  pushq %rsi\n  pushq %rdx\n  pushq %rcx\n  pushq %r8\n  pushq %r9\n"
    "  subq $136, %rsp\n"
    "  movups %xmm0, 0(%rsp)\n  movups %xmm1, 16(%rsp)\n  movups %xmm2, 32(%rsp)\n"
    "  movups %xmm3, 48(%rsp)\n  movups %xmm4, 64(%rsp)\n  movups %xmm5, 80(%rsp)\n"
    "  movups %xmm6, 96(%rsp)\n  movups %xmm7, 112(%rsp)\n"
    "  movslq %eax, %rdi\n"
    "  call resolve\n"
    "  movq %rax, %r11\n"
    "  movups 0(%rsp), %xmm0\n  movups 16(%rsp), %xmm1\n  movups 32(%rsp), %xmm2\n"
    "  movups 48(%rsp), %xmm3\n  movups 64(%rsp), %xmm4\n  movups 80(%rsp), %xmm5\n"
    "  movups 96(%rsp), %xmm6\n  movups 112(%rsp), %xmm7\n"
    "  addq $136, %rsp\n"
    "  popq %r9\n  popq %r8\n  popq %rcx\n  popq %rdx\n  popq %rsi\n  popq %rdi\n"
    "  jmp *%r11\n");

#define FUNCTION(index, kind, name)                    \
    __asm__(".globl " #name "\n.type " #name ", @function\n" #name ":\n"    \
            "  movq targets+8*" #index "(%rip), %r11\n"                     \
            "  testq %r11, %r11\n"                                          \
            "  je 1f\n"                                                     \
            "  jmp *%r11\n"                                                 \
            "1: movl $" #index ", %eax\n"                                   \
            "  jmp slow\n");
#include SYMBOLS
