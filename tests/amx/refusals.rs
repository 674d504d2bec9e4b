//! What a processor would refuse ends the process with a reason, in a process of its own here.

use super::amx;
use super::{FULL, config};
use nix::libc;
use std::arch::asm;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

/// Runs `child` of this test binary with a case's name.
pub(crate) fn die(case: &str) -> (Output, String) {
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["refusals::child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("AMX_CASE", case)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    (out, text)
}

#[track_caller]
fn refused(case: &str, words: &str) {
    let (out, text) = die(case);
    assert_eq!(out.status.signal(), Some(libc::SIGABRT), "{case}: {text}");
    let line = text.lines().find(|line| line.starts_with("amx emulator: ")).unwrap_or_default();
    assert!(line.contains(words), "{case}: {text}");
}

#[test]
fn wrong_configurations_are_refused() {
    if !super::emulated() {
        return;
    }
    refused("palette 2", "#GP: palette 2");
    refused("reserved", "#GP: byte 3 of the configuration is 1, must be 0");
    refused("wide", "#GP: tmm2 is given 65 bytes a row, at most 64 fit");
    refused("tall", "#GP: tmm1 is given 17 rows, at most 16 fit");
    refused("half", "#GP: tmm0 is given 4 rows of 0 bytes");
}

#[test]
fn wrong_uses_are_refused() {
    if !super::emulated() {
        return;
    }
    refused("never configured", "#UD: no tile is configured; Zero(0)");
    refused("released", "#UD: no tile is configured");
    refused("empty", "#UD: tmm5 has no rows in this configuration");
    refused("odd", "#UD: tmm0 has 6 bytes a row, no multiple of 4");
    refused("start", "#UD: start_row 4 is not inside tmm0");
    refused("same", "#UD: tmm0, tmm1 and tmm1 are not three different tiles");
    refused("rows", "#UD: shapes: tmm0 has 16 rows, its first factor tmm1 8");
    refused("columns", "#UD: shapes: tmm0 has 64 bytes a row, its second factor tmm2 32");
    refused("depth", "#UD: shapes: tmm1 has 64 bytes a row, which is not 4 times tmm2's 8 rows");
    refused("int8", "not emulated: another AMX instruction");
}

#[test]
fn a_row_too_many_meets_the_guard() {
    if !super::emulated() {
        return;
    }
    for case in ["load beyond", "store beyond"] {
        let (out, text) = die(case);
        assert_eq!(out.status.signal(), Some(libc::SIGSEGV), "{case}: {text}");
    }
    let (out, text) = die("up to the guard");
    assert!(out.status.success(), "{text}");
}

#[test]
fn an_illegal_instruction_still_kills() {
    if !super::emulated() {
        return;
    }
    for case in ["ud2", "ud2, plain"] {
        let (out, text) = die(case);
        assert_eq!(out.status.signal(), Some(libc::SIGILL), "{case}: {text}");
    }
    let (out, text) = die("int3");
    assert_eq!(out.status.signal(), Some(libc::SIGTRAP), "{text}");
}

#[test]
fn an_earlier_handler_gets_what_is_not_ours() {
    if !super::emulated() {
        return;
    }
    for case in ["earlier", "earlier, plain"] {
        let (out, text) = die(case);
        assert_eq!(out.status.code(), Some(77), "{case}: {text}");
    }
}

extern "C" fn leave(_: libc::c_int) {
    // SAFETY: it may be called in a handler.
    unsafe { libc::_exit(77) };
}

/// Two pages of which the second may not be touched; gives the end of the first.
fn guarded() -> *mut u8 {
    const PAGE: usize = 4096;
    // SAFETY: fresh memory, half of it closed again.
    unsafe {
        let all = libc::mmap(
            std::ptr::null_mut(),
            2 * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(all, libc::MAP_FAILED);
        let end = all.cast::<u8>().add(PAGE);
        assert_eq!(libc::mprotect(end.cast(), PAGE, libc::PROT_NONE), 0);
        end
    }
}

/// Not a test by itself: see `die`.
#[test]
#[ignore = "run by the others, in a process of its own"]
fn child() {
    let Ok(case) = std::env::var("AMX_CASE") else { return };
    // No core files of deaths that are wanted.
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is valid.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) }, 0);
    if case == "hardware" {
        return super::hardware::child(false);
    }
    let (case, plain) = case.strip_suffix(", plain").map_or((&*case, false), |case| (case, true));
    if case == "earlier" {
        // SAFETY: `leave` is a handler of this kind.
        unsafe { libc::signal(libc::SIGILL, leave as *const () as usize) };
    }
    if plain {
        amx::install_plain();
    } else {
        amx::install();
    }
    if case == "hardware, emulated" {
        return super::hardware::child(true);
    }
    if case == "interrupted" {
        super::interrupted();
        return;
    }
    let mut shapes = config(&[FULL, FULL, FULL]);
    match case {
        "palette 2" => shapes[0] = 2,
        "reserved" => shapes[3] = 1,
        "wide" => shapes[20] = 65,
        "tall" => shapes[49] = 17,
        "half" => shapes = config(&[(4, 0)]),
        "odd" => shapes = config(&[(4, 6)]),
        "start" => shapes = config(&[(4, 8)]),
        "rows" => shapes = config(&[FULL, (8, 64), FULL]),
        "columns" => shapes = config(&[FULL, FULL, (16, 32)]),
        "depth" => shapes = config(&[FULL, FULL, (8, 64)]),
        _ => {}
    }
    if case == "start" {
        shapes[1] = 4;
    }
    let end = guarded();
    // SAFETY: these are wrong on purpose, and the emulator ends the process; the others stay
    // inside the page.
    unsafe {
        if case != "never configured" {
            asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack));
        }
        match case {
            "never configured" => asm!("tilezero tmm0", out("tmm0") _, options(nostack)),
            "released" => asm!("tilerelease", "tilezero tmm0", out("tmm0") _, options(nostack)),
            "empty" => asm!("tilezero tmm5", out("tmm5") _, options(nostack)),
            "odd" | "start" | "load beyond" | "up to the guard" => {
                let past = usize::from(case == "load beyond") * 64;
                asm!("tileloadd tmm0, [{at} + {stride}]", at = in(reg) end.sub(1024).add(past),
                     stride = in(reg) 64_u64, out("tmm0") _, options(nostack));
                asm!("tilestored [{at} + {stride}], tmm0", at = in(reg) end.sub(1024),
                     stride = in(reg) 64_u64, options(nostack));
            }
            "store beyond" => {
                asm!("tilestored [{at} + {stride}], tmm0", at = in(reg) end.sub(1023),
                     stride = in(reg) 64_u64, options(nostack));
            }
            // tdpbf16ps tmm0, tmm1, tmm1: the assembler knows better.
            "same" => asm!(".byte 0xc4, 0xe2, 0x72, 0x5c, 0xc1", out("tmm0") _, options(nostack)),
            "int8" => asm!("tdpbssd tmm0, tmm1, tmm2", out("tmm0") _, options(nostack)),
            "ud2" | "earlier" => asm!("ud2"),
            "int3" => asm!("int3"),
            _ => asm!("tdpbf16ps tmm0, tmm1, tmm2", out("tmm0") _, options(nostack)),
        }
    }
}
