//! `haul doctor`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};

use super::gpus::Gpus;
use super::{CUDA, VERSION, print, print_json, shown};
use crate::engine::{NUMERICS_VERSION, Precision, choose, forced};
use crate::job::{
    CheckedPack, Exit, JobError, LINE_SCHEMA, MANIFEST_SCHEMA, S3Flags, check_packs, mib,
};
use crate::kernels::{Cpu, Tier};
use crate::model::{Info, Model, ModelFile};
use crate::picture::DECODERS;
use crate::store::S3Options;

/// Say what this machine has and what haul makes of it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  haul doctor
  haul doctor --model yolov8n.pt --json")]
pub(super) struct Doctor {
    /// Look into a checkpoint too, also s3://..., and read all of its packs (exit 1 if one is damaged)
    #[arg(long, short, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    s3: S3Flags,
}

impl Doctor {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        let cpu = Cpu::get();
        let forced = forced().map_err(|error| JobError::usage(&error))?;
        let chosen = Precision::ALL.map(|precision| (precision, choose(precision, None, forced)));
        let gpus = Gpus::look();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let memory = Memory::look();
        let (model, packs) = match &self.model {
            None => (None, Vec::new()),
            Some(file) => {
                let (model, packs) = look(file, &self.s3.options()?)?;
                (model.map(|model| (file, model)), packs)
            }
        };
        let exit = match packs.iter().any(|pack| pack.fault.is_some()) {
            true => Exit::Failed,
            false => Exit::Done,
        };
        if self.json {
            let tiers: Vec<Value> = Tier::ALL
                .into_iter()
                .map(|tier| {
                    json!({
                        "tier": tier.name(),
                        "numeric_class": tier.numeric_class(),
                        "usable": cpu.has(tier),
                        "needs": needs(tier),
                    })
                })
                .collect();
            let precisions: Map<String, Value> = chosen
                .iter()
                .map(|(precision, tier)| {
                    (precision.name().to_owned(), json!(tier.as_ref().ok().map(|t| t.name())))
                })
                .collect();
            let gpu_precisions: Map<String, Value> = Precision::ALL
                .into_iter()
                .filter_map(|asked| {
                    Some((asked.name().to_owned(), json!(gpus.precision(asked)?.name())))
                })
                .collect();
            let (found, reason) = gpus.json();
            print_json(&json!({
                "haul": env!("CARGO_PKG_VERSION"),
                "cuda": CUDA,
                "gpus": found,
                "no_gpus": reason,
                "gpu_precisions": gpu_precisions,
                "cpu": cpu.brand,
                "cores": cores,
                "memory_bytes": memory.total,
                "memory_available_bytes": memory.available,
                "memory_limit_bytes": memory.limit,
                "tiers": tiers,
                "forced_tier": forced.map(Tier::name),
                "precisions": precisions,
                "numerics_version": NUMERICS_VERSION,
                "line_schema": LINE_SCHEMA,
                "manifest_schema": MANIFEST_SCHEMA,
                "decoders": DECODERS,
                "model": model.as_ref().map(|(file, model)| json!({
                    "file": file.display().to_string(),
                    "sha256": model.sha256,
                    "info": model.info,
                })),
                "packs": packs.iter().map(|pack| json!({
                    "file": pack.path.display().to_string(),
                    "form": pack.form,
                    "source_sha256": pack.source_sha256,
                    "fault": pack.fault,
                })).collect::<Vec<_>>(),
            }))?;
            return Ok(exit);
        }
        let mut text = format!("cpu        {}, {cores} cores\nmemory     {memory}\n", cpu.brand);
        text.push_str("kernels    (HAUL_CPU_TIER forces one)\n");
        for tier in Tier::ALL {
            let class = tier.numeric_class();
            let has = if cpu.has(tier) { "yes" } else { "no" };
            text.push_str(&format!("  {:<12} {has:<4} {class:<14} {}\n", tier.name(), needs(tier)));
        }
        text.push_str(&gpus.text());
        text.push_str("--precision\n");
        for (precision, tier) in &chosen {
            let mut said = match tier {
                Ok(tier) => format!("{tier}, class {}", tier.numeric_class()),
                Err(error) => format!("no: {error}"),
            };
            if let Some(there) = gpus.precision(*precision) {
                said = format!("on the CPU {said}; on a GPU {there}");
            }
            text.push_str(&format!("  {:<12} {said}\n", precision.name()));
        }
        text.push_str(&format!(
            "versions   haul {VERSION}, numerics {NUMERICS_VERSION}, {LINE_SCHEMA}, {MANIFEST_SCHEMA}\n\
             decoders   {DECODERS}\n"
        ));
        if let Some((file, model)) = &model {
            let Info { format, task, imgsz, names, parameters, widths, depths, .. } = &model.info;
            text.push_str(&format!(
                "model      {}: {format}, {task}, {} classes, {imgsz} pixels, {parameters} \
                 parameters\n  sha256     {}\n  widths     {widths:?}, depths {depths:?}\n",
                shown(file),
                names.len(),
                model.sha256,
            ));
        }
        for CheckedPack { path, form, source_sha256, fault } in &packs {
            let path = shown(path);
            text.push_str(&match (fault, form, source_sha256) {
                (None, Some(form), Some(source)) => {
                    format!("pack       {path}: {form}, whole\n  made from  {source}\n")
                }
                (fault, ..) => {
                    format!("pack       {path}: BAD\n  {}\n", fault.as_deref().unwrap_or("?"))
                }
            });
        }
        print(&text)?;
        Ok(exit)
    }
}

/// Reads a checkpoint and all of the packs beside it, or a pack.
fn look(file: &Path, s3: &S3Options) -> Result<(Option<Model>, Vec<CheckedPack>), JobError> {
    let file = ModelFile::find(file, s3)?;
    if file.open_pack()?.is_some() {
        return Ok((None, check_packs(&file, None)?));
    }
    let model = file.read()?;
    let packs = check_packs(&file, Some(&model.sha256))?;
    Ok((Some(model), packs))
}

/// What a tier needs, and what there is to know about it here.
fn needs(tier: Tier) -> &'static str {
    match tier {
        Tier::Avx512Bf16 if Cpu::get().avx512_bf16 && !Cpu::get().bf16_is_fast => {
            "AVX-512 F, BW, DQ, VL and BF16; no faster than f32 on this CPU, so only by --precision \
             bf16"
        }
        Tier::Amx => "AMX tiles with BF16, which the system lets us use, and the next line's",
        Tier::Avx512Bf16 => "AVX-512 F, BW, DQ, VL and BF16",
        Tier::Avx512 => "AVX-512 F, BW, DQ, VL",
        Tier::Avx2 => "AVX2 and FMA",
        Tier::Portable => "nothing",
        Tier::Reference => "nothing; naive, for tests, never chosen",
    }
}

/// Bytes, where the system tells.
struct Memory {
    total: Option<u64>,
    available: Option<u64>,
    /// Of the control group.
    limit: Option<u64>,
}

impl Memory {
    fn look() -> Memory {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(kib << 10)
        };
        let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
        Memory {
            total: field("MemTotal:"),
            available: field("MemAvailable:"),
            limit: limit.and_then(|text| text.trim().parse().ok()),
        }
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let size = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), mib);
        write!(f, "{}, {} available", size(self.total), size(self.available))?;
        match self.limit {
            Some(limit) => write!(f, ", limited to {}", mib(limit)),
            None => Ok(()),
        }
    }
}
