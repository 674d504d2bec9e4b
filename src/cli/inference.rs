//! The flags about a model and what is asked of it, for commands that are no jobs. They are the
//! flags of `run`, with an environment variable each, since containers are set up by those.

use std::path::PathBuf;

use clap::Args;

use crate::job::Settings;

#[derive(Debug, Args)]
pub(super) struct InferenceFlags {
    /// Checkpoint: an Ultralytics .pt, or .safetensors or .haulpack made by `haul model`, or SageMaker's model.tar.gz; also s3://
    #[arg(long, short, value_name = "FILE", env = "HAUL_MODEL")]
    pub(super) model: Option<PathBuf>,
    /// Least confidence of a detection [default: 0.25]
    #[arg(long, value_name = "0..1", env = "HAUL_CONF", help_heading = "Detections")]
    conf: Option<f64>,
    /// Boxes of one class that overlap more than this are one object [default: 0.7]
    #[arg(long, value_name = "0..1", env = "HAUL_IOU", help_heading = "Detections")]
    iou: Option<f64>,
    /// Most detections of a picture [default: 300]
    #[arg(long, value_name = "N", env = "HAUL_MAX_DET", help_heading = "Detections")]
    max_det: Option<usize>,
    /// Longest side of the network's input, a multiple of 32 [default: 640, or the model's own]
    #[arg(long, value_name = "N", env = "HAUL_IMGSZ", help_heading = "Detections")]
    imgsz: Option<u32>,
    /// Arithmetic of the network: auto (the fastest here), f32, bf16, or f16 on a GPU [default: auto]
    #[arg(long, value_name = "KIND", env = "HAUL_PRECISION", help_heading = "Detections")]
    precision: Option<String>,
    /// Keep these classes only: names or numbers, separated by commas
    #[arg(
        long,
        value_name = "NAMES|IDS",
        value_delimiter = ',',
        env = "HAUL_CLASSES",
        help_heading = "Detections"
    )]
    classes: Option<Vec<String>>,
    /// Suppress overlapping boxes of different classes too
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", env = "HAUL_AGNOSTIC", help_heading = "Detections")]
    agnostic: Option<bool>,
    /// Pad every picture to a square instead of to the smallest multiple of 32
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL", env = "HAUL_SQUARE", help_heading = "Detections")]
    square: Option<bool>,
    /// Sides of boxes in pixels, or normalized: 0 to 1 of the upright picture [default: pixels]
    #[arg(long, value_name = "UNIT", env = "HAUL_BOXES", help_heading = "Detections")]
    boxes: Option<String>,
    /// Incomplete JPEGs: reject, or accept what is there [default: reject]
    #[arg(long, value_name = "POLICY", env = "HAUL_TRUNCATED", help_heading = "Limits")]
    truncated: Option<String>,
    /// Most pixels of a picture [default: 100000000]
    #[arg(long, value_name = "N", env = "HAUL_MAX_PIXELS", help_heading = "Limits")]
    max_pixels: Option<u64>,
    /// Most memory for one picture, file and pixels [default: 512MiB]
    #[arg(long, value_name = "SIZE", env = "HAUL_MAX_PICTURE_MEMORY", help_heading = "Limits")]
    max_picture_memory: Option<String>,
    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N", env = "HAUL_WORKERS", help_heading = "Limits")]
    workers: Option<usize>,
    /// Where the network runs: auto (a GPU if there is one), cpu, or GPUs: cuda:0, cuda:0,1 [default: auto]
    #[arg(long, value_name = "DEVICE", env = "HAUL_DEVICE", help_heading = "Limits")]
    device: Option<String>,
    /// Pictures that a GPU computes together, 1 to 1024 [default: as suits it]
    #[arg(long, value_name = "N", env = "HAUL_BATCH", help_heading = "Limits")]
    batch: Option<usize>,
    /// Memory for model, workers and decoding [default: what all workers need]
    #[arg(long, value_name = "SIZE", env = "HAUL_MEMORY_BUDGET", help_heading = "Limits")]
    memory_budget: Option<String>,
}

impl InferenceFlags {
    pub(super) fn settings(&self) -> Settings {
        Settings {
            model: self.model.clone(),
            conf: self.conf,
            iou: self.iou,
            max_det: self.max_det,
            imgsz: self.imgsz,
            precision: self.precision.clone(),
            classes: self.classes.clone(),
            agnostic: self.agnostic,
            square: self.square,
            boxes: self.boxes.clone(),
            truncated: self.truncated.clone(),
            max_pixels: self.max_pixels,
            // What a request may have is the limit of its door.
            max_file_mb: Some(1e6),
            max_picture_memory: self.max_picture_memory.clone(),
            workers: self.workers,
            device: self.device.clone(),
            batch: self.batch,
            memory_budget: self.memory_budget.clone(),
            ..Settings::default()
        }
    }
}
