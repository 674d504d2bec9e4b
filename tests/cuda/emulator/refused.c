// All functions of a library: those that nobody emulates say so, and refuse. They are weak, so that
// those that are emulated take their places.
//
// Given by the build script: SYMBOLS, a header of FUNCTION(index, kind, name), and the status REFUSED.
#include <stddef.h>
#include <stdio.h>

#define OPEN __attribute__((weak))
#define STATUS(name) OPEN int name(void) { return said(#name), REFUSED; }
#define SIZE(name) OPEN size_t name(void) { return said(#name), 0; }
#define TEXT(name) OPEN const char *name(void) { return said(#name), "not emulated"; }

static void said(const char *name) { fprintf(stderr, "emulator: %s is not emulated\n", name); }

#define status(name) STATUS(name)
#define size(name) SIZE(name)
#define text(name) TEXT(name)
#define FUNCTION(index, kind, name) kind(name)
#include SYMBOLS
