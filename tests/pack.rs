//! Packs: the same results as from the checkpoint, or left aside.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::binary::{Haul, concatenated, folder, model, parts, testdata};
use haul::engine::packed;
use haul::job::check_packs;
use haul::kernels::{Cpu, Tier};
use haul::model::{ModelFile, open_pack, read, write_pack};
use haul::store::S3Options;
use tempfile::TempDir;

/// A folder with a copy of the small model.
fn home() -> (TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("m.safetensors");
    fs::copy(model(), &file).unwrap();
    (home, file)
}

fn run(model: &Path, input: &Path, output: &Path) -> Haul {
    Haul::run(input, output).arg("--model").arg(model).arg("-v")
}

fn pack(model: &Path) -> Haul {
    Haul::new("model").arg("pack").arg(model)
}

/// The packs in a folder.
fn packs(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|suffix| suffix == "haulpack")).collect()
}

fn only_pack(folder: &Path) -> PathBuf {
    let packs = packs(folder);
    assert_eq!(packs.len(), 1, "{packs:?}");
    packs.into_iter().next().unwrap()
}

fn fingerprint(output: &Path) -> serde_json::Value {
    let job = fs::read(output.join("_manifest/job.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&job).unwrap()["fingerprint"].clone()
}

/// The tiers whose packs this machine can use, one for each form.
fn tiers() -> Vec<Tier> {
    let all = [Tier::Amx, Tier::Avx512Bf16, Tier::Avx512, Tier::Avx2, Tier::Portable];
    all.into_iter().filter(|&tier| Cpu::get().has(tier)).collect()
}

/// A pack of the small model for a tier, whether this CPU has it or not, with other rules if asked.
fn written(tier: Tier, rules: Option<&str>) -> Vec<u8> {
    let model = read(&model()).unwrap();
    let (packing, weights) = packed(&model.network, tier).unwrap();
    let rules = rules.unwrap_or(&packing.rules);
    write_pack(&model, (1, 2), (packing.form, rules), weights.bytes()).unwrap()
}

#[test]
fn bytes_and_fingerprint_are_those_of_the_checkpoint() {
    let photos = testdata("pictures");
    for tier in tiers() {
        let (home, file) = home();
        let out = |name: &str| home.path().join(name);
        let tiered = |haul: Haul| haul.env("HAUL_CPU_TIER", tier.name());
        tiered(run(&file, &photos, &out("plain"))).exits(0);
        let made = tiered(pack(&file)).exits(0).says(tier.numeric_class());
        let pack = only_pack(home.path());
        assert!(made.stderr.contains(&pack.display().to_string()), "{}", made.stderr);
        tiered(run(&file, &photos, &out("beside"))).exits(0).says("weights from `");
        // A pack that is named needs no checkpoint.
        let alone = home.path().join("alone");
        fs::rename(&pack, &alone).unwrap();
        tiered(run(&alone, &photos, &out("named"))).exits(0);
        let plain = concatenated(&out("plain"));
        assert!(plain.windows(7).any(|w| w == b"\"score\""), "something is found");
        for name in ["beside", "named"] {
            assert!(concatenated(&out(name)) == plain, "{tier}: {name} gave other bytes");
            assert_eq!(fingerprint(&out(name)), fingerprint(&out("plain")), "{tier}: {name}");
            Haul::new("verify").arg(out(name)).exits(0);
        }
    }
}

#[test]
fn every_byte_of_the_header_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.haulpack");
    let sound = written(Tier::Portable, None);
    fs::write(&path, &sound).unwrap();
    let opened = open_pack(&path).unwrap().unwrap();
    let offset = opened.offset;
    assert_eq!(offset % 4096, 0);
    opened.verify(&path).unwrap();
    let mut bytes = sound.clone();
    for at in 0..offset {
        bytes[at] ^= 1 << (at % 8);
        fs::write(&path, &bytes[..]).unwrap();
        assert!(!matches!(open_pack(&path), Ok(Some(_))), "byte {at}");
        bytes[at] = sound[at];
    }
    // The weights are not read before they are used; who asks is told.
    bytes[offset + 1000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = open_pack(&path).unwrap().unwrap().verify(&path).unwrap_err().to_string();
    assert!(error.contains("its weights are damaged"), "{error}");
}

#[test]
fn a_named_pack_that_is_of_no_use_is_exit_2() {
    let photos = folder(2);
    let (home, file) = home();
    let path = home.path().join("p.haulpack");
    let out = home.path().join("out");
    let portable = || run(&path, photos.path(), &out).env("HAUL_CPU_TIER", "portable");
    let sound = written(Tier::Portable, None);

    for len in [8, 47, 48, 4095, sound.len() - 1] {
        fs::write(&path, &sound[..len]).unwrap();
        portable().exits(2).says("p.haulpack` cannot be used").says("is the file complete?");
    }
    fs::write(&path, [&sound[..], b"more"].concat()).unwrap();
    portable().exits(2).says("is the file complete?");
    let mut bytes = sound.clone();
    bytes[8] = 2;
    fs::write(&path, &bytes).unwrap();
    portable().exits(2).says("it is of format 2, and this haul reads 1");
    bytes = sound.clone();
    bytes[200] ^= 4;
    fs::write(&path, &bytes).unwrap();
    portable().exits(2).says("its header is damaged");
    fs::write(&path, written(Tier::Portable, Some("packing 0, numerics 1, layout 0"))).unwrap();
    portable().exits(2).says("another version of haul made it");
    // Sound, and of another form than the kernels read.
    for tier in [Tier::Amx, Tier::Avx512Bf16] {
        fs::write(&path, written(tier, None)).unwrap();
        portable().exits(2).says("portable kernels read f32-winograd");
    }
    // What wants a checkpoint says so.
    fs::write(&path, &sound).unwrap();
    for command in ["inspect", "convert", "pack"] {
        let haul = Haul::new("model").arg(command).arg(&path);
        haul.exits(2).says("a pack of weights").says("name the checkpoint");
    }
    pack(&file).args(["--precision", "f16"]).exits(2);
    pack(&file).arg("-o").arg("/nowhere/p.haulpack").exits(2).says("is in no folder");
    assert!(!out.join("_manifest/job.json").exists());
    portable().exits(0);
}

#[test]
fn a_pack_beside_the_checkpoint_that_does_not_fit_is_left_aside() {
    let photos = folder(2);
    let (home, file) = home();
    let out = |name: &str| home.path().join(name);
    let portable =
        |name: &str| run(&file, photos.path(), &out(name)).env("HAUL_CPU_TIER", "portable");
    portable("before").exits(0);
    pack(&file).env("HAUL_CPU_TIER", "portable").exits(0);
    let path = only_pack(home.path());
    let sound = fs::read(&path).unwrap();

    let flip = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        bytes
    };
    let old = written(Tier::Portable, Some("packing 0, numerics 0, layout 0"));
    for (index, (bytes, why)) in [
        (flip(0), "it is no pack"),
        (flip(9), "it is of format"),
        (flip(100), "its header is damaged"),
        (sound[..sound.len() - 4096].to_vec(), "is the file complete?"),
        (sound[..20].to_vec(), "is the file complete?"),
        // Its source has another size and time.
        (old, "another size or time"),
        (written(Tier::Portable, None), "another size or time"),
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(&path, bytes).unwrap();
        let name = format!("bad-{index}");
        portable(&name).exits(0).says("is not used: ").says(why).says("haul model pack");
        assert_eq!(concatenated(&out(&name)), concatenated(&out("before")), "{why}");
    }

    // A checkpoint that was touched, or is another one, is not what was packed.
    fs::write(&path, &sound).unwrap();
    portable("fits").exits(0).says("weights from `");
    let later = SystemTime::now() + Duration::from_secs(3);
    fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
    portable("touched").exits(0).says("another size or time");
    pack(&file).env("HAUL_CPU_TIER", "portable").exits(0);
    portable("again").exits(0).says("weights from `");
    assert_ne!(fs::read(&path).unwrap(), sound, "the time is in it");
    for name in ["fits", "touched", "again"] {
        assert_eq!(concatenated(&out(name)), concatenated(&out("before")), "{name}");
    }
}

#[test]
fn a_pack_of_another_tier_is_not_looked_at() {
    let photos = folder(2);
    let (home, file) = home();
    for tier in tiers() {
        let other = if tier == Tier::Amx { Tier::Portable } else { Tier::Amx };
        let form = packed(&read(&file).unwrap().network, other).unwrap().0.form;
        let path = home.path().join(format!("m.safetensors.{form}.haulpack"));
        fs::write(&path, written(other, None)).unwrap();
        let tiered = |haul: Haul| haul.env("HAUL_CPU_TIER", tier.name());
        let ran = tiered(run(&file, photos.path(), &home.path().join(tier.name()))).exits(0);
        assert!(!ran.stderr.contains("haulpack"), "{}", ran.stderr);
        let named = tiered(run(&path, photos.path(), &home.path().join("named"))).exits(2);
        named.says(&format!("it is in the form {form}")).says(&format!("{tier} kernels read"));
        fs::remove_file(&path).unwrap();
    }
    // Tiers of one form share a pack: that is what a form is.
    if Cpu::get().has(Tier::Avx512) {
        pack(&file).env("HAUL_CPU_TIER", "avx512").exits(0);
        let out = home.path().join("avx2-after");
        let avx2 = run(&file, photos.path(), &out).env("HAUL_CPU_TIER", "avx2");
        avx2.exits(0).says("weights from `");
    }
}

#[test]
fn a_pack_of_another_class_than_the_job_is_refused() {
    let photos = folder(2);
    let (home, file) = home();
    if !Cpu::get().has(Tier::Avx512Bf16) {
        println!("skipped: this CPU has one class only");
        return;
    }
    let out = home.path().join("out");
    run(&file, photos.path(), &out).args(["--precision", "bf16"]).exits(0);
    let single = home.path().join("single.haulpack");
    pack(&file).args(["--precision", "f32", "-o"]).arg(&single).exits(0);
    let wrong = run(&single, photos.path(), &out).args(["--precision", "bf16"]);
    wrong.exits(2).says("it is in the form f32-");
    let resume = Haul::new("resume").arg(&out).arg("--model").arg(&single);
    resume.exits(2).says("it is in the form f32-");
}

#[test]
fn packs_made_at_once_are_one_pack() {
    let (home, file) = home();
    let children: Vec<_> = (0..6).map(|_| pack(&file).spawn()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let bytes = fs::read(only_pack(home.path())).unwrap();
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2, "nothing is left over");
    pack(&file).exits(0);
    assert!(fs::read(only_pack(home.path())).unwrap() == bytes, "the same bytes every time");
}

#[test]
fn a_job_goes_on_with_and_without_a_pack() {
    let photos = folder(12);
    let (home, file) = home();
    let out = home.path().join("out");
    run(&file, photos.path(), &out).args(["--max-images", "3"]).exits(0);
    let whole = parts(&out);
    let lose = || {
        for name in ["_SUCCESS.json", "_manifest/done/00000001.json", "part-00000001.jsonl"] {
            fs::remove_file(out.join(name)).unwrap();
        }
    };
    let resume = || Haul::new("resume").arg(&out).arg("-v");
    pack(&file).exits(0);
    let pack = only_pack(home.path());
    lose();
    resume().exits(0).says("weights from `");
    assert!(parts(&out) == whole);
    // From the pack alone, and from the checkpoint alone.
    let away = home.path().join("away.safetensors");
    fs::rename(&file, &away).unwrap();
    lose();
    resume().arg("--model").arg(&pack).exits(0);
    assert!(parts(&out) == whole);
    fs::rename(&away, &file).unwrap();
    fs::remove_file(&pack).unwrap();
    lose();
    let ran = resume().exits(0);
    assert!(!ran.stderr.contains("weights from"), "{}", ran.stderr);
    assert!(parts(&out) == whole);
}

#[test]
fn all_of_a_pack_is_checked_for_those_who_ask() {
    let (home, file) = home();
    let found = |path: &Path| ModelFile::find(path, &S3Options::default()).unwrap();
    let sha256 = read(&file).unwrap().sha256;
    assert!(check_packs(&found(&file), Some(&sha256)).unwrap().is_empty());
    pack(&file).exits(0);
    pack(&file).env("HAUL_CPU_TIER", "portable").exits(0);
    let count = packs(home.path()).len();
    let checked = check_packs(&found(&file), Some(&sha256)).unwrap();
    assert_eq!(checked.len(), count);
    assert!(checked.iter().all(|pack| pack.fault.is_none()), "{checked:?}");
    let doctor = |file: &Path| Haul::new("doctor").arg("--model").arg(file);
    assert!(doctor(&file).exits(0).stdout.contains("haulpack: f32-winograd, whole"));
    let other = check_packs(&found(&file), Some("another")).unwrap();
    assert!(other.iter().all(|pack| pack.fault.is_some()), "{other:?}");
    for path in packs(home.path()) {
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        let checked = check_packs(&found(&path), None).unwrap();
        let fault = checked[0].fault.as_deref().unwrap();
        assert!(fault.contains("its weights are damaged"), "{fault}");
        assert!(doctor(&path).exits(1).stdout.contains("its weights are damaged"));
    }
    assert!(doctor(&file).args(["--json"]).exits(1).stdout.contains("its weights are damaged"));
    assert!(check_packs(&found(&file), None).unwrap().iter().all(|pack| pack.fault.is_some()));
    assert!(check_packs(&found(&home.path().join("none")), None).is_err());
}
