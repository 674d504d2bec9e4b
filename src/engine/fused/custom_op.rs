//! The fused executor as an operation of candle, for those who have tensors.
//!
//! Translates shapes and errors; computes nothing itself.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape};

use super::super::head::RawHead;
use super::{Fused, FusedWorker, Shared};

/// A whole network as one operation on a tensor: image in, head out. Made by [`Fused::custom_op`].
///
/// The image is (1, 3, height, width), R, G, B, sides multiples of 32, contiguous, on the CPU:
/// f32 of values 0..=1, or u8. The result is (1, 4 · reg_max + classes, anchors) in f32: the raw
/// logits of the box distributions (4 sides × reg_max bins), then those of the classes; anchors
/// finest scale first, each row by row. That is what YOLOv8's Detect has before it decodes.
///
/// It can be called from several threads: each call takes a worker of its own, and leaves it for
/// later calls. It has no gradient, and no form for other devices than the CPU.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use haul::engine::fused::Fused;
/// use haul::kernels::Tier;
///
/// let model = haul::model::read("testdata/model/shapes.safetensors".as_ref())?;
/// let op = Fused::new(&model.network, Tier::Portable)?.custom_op();
///
/// let image = Tensor::full(0.5f32, (1, 3, 64, 96), &Device::Cpu)?;
/// let head = image.apply_op1_no_bwd(&op)?;
/// let classes = model.network.graph.classes;
/// assert_eq!(head.dims(), [1, 4 * 16 + classes, 8 * 12 + 4 * 6 + 2 * 3]);
///
/// // The scores of all classes: a sigmoid of the last rows.
/// let scores = candle_nn::ops::sigmoid(&head.narrow(1, 4 * 16, classes)?)?;
/// assert!(scores.max_all()?.to_scalar::<f32>()? <= 1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct HeadOp {
    shared: Arc<Shared>,
    idle: Mutex<Vec<FusedWorker>>,
}

impl Fused {
    /// This network as an operation of candle.
    #[must_use]
    pub fn custom_op(&self) -> HeadOp {
        HeadOp { shared: self.shared.clone(), idle: Mutex::new(Vec::new()) }
    }
}

impl HeadOp {
    fn head(&self, planes: &[f32], width: usize, height: usize) -> Result<RawHead> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let mut worker = match kept {
            Some(worker) => worker,
            None => FusedWorker::new(self.shared.clone(), None, None).map_err(Error::wrap)?,
        };
        let head = worker.head(planes, width, height).map_err(Error::wrap);
        idle().push(worker);
        head
    }
}

impl CustomOp1 for HeadOp {
    fn name(&self) -> &'static str {
        "haul-yolov8-head"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let name = self.name();
        let (height, width) = match *layout.dims() {
            [1, 3, height, width] => (height, width),
            ref other => candle_core::bail!(
                "{name}: the image is {other:?}, expected [1, 3, height, width] (batches go one by one)"
            ),
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("{name}: the image is not contiguous (call `contiguous` before)")
        };
        let head = match storage {
            CpuStorage::F32(values) => self.head(&values[start..end], width, height)?,
            CpuStorage::U8(values) => {
                let values = values[start..end].iter().map(|&value| f32::from(value) / 255.0);
                self.head(&values.collect::<Vec<_>>(), width, height)?
            }
            other => candle_core::bail!(
                "{name}: the image is {:?}, expected F32 of 0..=1 or U8 (call `to_dtype` before)",
                candle_core::backend::BackendStorage::dtype(other)
            ),
        };
        Ok(joined(&head))
    }
}

/// Rows of all anchors: box logits, then class logits.
fn joined(head: &RawHead) -> (CpuStorage, Shape) {
    let (bins, classes) = (4 * head.reg_max, head.classes);
    let anchors: usize = head.levels.iter().map(|level| level.width * level.height).sum();
    let mut out = Vec::with_capacity((bins + classes) * anchors);
    for row in 0..bins + classes {
        for level in &head.levels {
            let cells = level.width * level.height;
            let (values, row) =
                if row < bins { (&level.boxes, row) } else { (&level.scores, row - bins) };
            out.extend_from_slice(&values[row * cells..(row + 1) * cells]);
        }
    }
    (CpuStorage::F32(out), Shape::from((1, bins + classes, anchors)))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::super::Strips;
    use super::super::tests::network::Recipe;
    use super::super::tests::{picture, single, worker};
    use super::*;

    fn op() -> HeadOp {
        Fused::new(&Recipe::odd().network(), single()).unwrap().custom_op()
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn it_is_the_head_of_the_worker() {
        let (op, recipe) = (op(), Recipe::odd());
        let mut worker = worker(&recipe, single(), Strips::default());
        for (w, h) in [(96, 64), (32, 32), (64, 160)] {
            let planes = picture((w, h));
            let head = worker.head(&planes, w, h).unwrap();
            let image = Tensor::from_vec(planes, (1, 3, h, w), &Device::Cpu).unwrap();
            let ours = image.apply_op1_no_bwd(&op).unwrap();
            let rows = 4 * recipe.reg_max + recipe.classes;
            let anchors = w * h / 64 + w * h / 256 + w * h / 1024;
            assert_eq!((ours.dims(), ours.dtype()), ([1, rows, anchors].as_slice(), DType::F32));
            let ours = bits(&ours);
            let mut first = 0;
            for level in &head.levels {
                let cells = level.width * level.height;
                for (row, values) in
                    level.boxes.chunks(cells).chain(level.scores.chunks(cells)).enumerate()
                {
                    for (cell, value) in values.iter().enumerate() {
                        assert_eq!(ours[row * anchors + first + cell], value.to_bits());
                    }
                }
                first += cells;
            }
        }
    }

    #[test]
    fn bytes_and_views_are_taken() {
        let op = op();
        let bytes: Vec<u8> = (0..2 * 3 * 32 * 64).map(|i| (i * 11 % 256) as u8).collect();
        // candle's own division by 255 multiplies, and rounds otherwise.
        let floats: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect();
        let shape = (2, 3, 32, 64);
        let bytes = Tensor::from_vec(bytes, shape, &Device::Cpu).unwrap();
        let floats = Tensor::from_vec(floats, shape, &Device::Cpu).unwrap();
        // The second of a batch is contiguous, but does not begin with the storage.
        let second = |both: &Tensor| both.narrow(0, 1, 1).unwrap();
        let expected = bits(&second(&bytes).apply_op1_no_bwd(&op).unwrap());
        assert!(expected == bits(&second(&floats).apply_op1_no_bwd(&op).unwrap()));
        assert!(expected == bits(&second(&floats).apply_op1(self::op()).unwrap()));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let op = op();
        let said = |image: Tensor| image.apply_op1_no_bwd(&op).unwrap_err().to_string();
        let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
        for shape in [[2, 3, 32, 32].as_slice(), &[1, 4, 32, 32], &[3, 32, 32], &[1, 0, 32, 32]] {
            assert!(said(zeros(shape, DType::F32)).contains("expected [1, 3, height, width]"));
        }
        for (h, w) in [(32, 33), (31, 32), (0, 32)] {
            let text = said(zeros(&[1, 3, h, w], DType::F32));
            assert!(text.contains("multiples of 32"), "{text}");
        }
        for dtype in [DType::F64, DType::F16, DType::BF16, DType::U32] {
            let text = said(zeros(&[1, 3, 32, 32], dtype));
            assert!(text.contains(&format!("is {dtype:?}, expected F32")), "{text}");
        }
        let turned = zeros(&[1, 3, 32, 64], DType::F32).transpose(2, 3).unwrap();
        assert!(said(turned).contains("not contiguous"));
        // It goes on working after all that.
        assert!(zeros(&[1, 3, 32, 32], DType::F32).apply_op1_no_bwd(&op).is_ok());
    }

    #[test]
    fn threads_share_it() {
        let op = op();
        let image = Tensor::from_vec(picture((64, 64)), (1, 3, 64, 64), &Device::Cpu).unwrap();
        let expected = bits(&image.apply_op1_no_bwd(&op).unwrap());
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..3 {
                        assert!(bits(&image.apply_op1_no_bwd(&op).unwrap()) == expected);
                    }
                });
            }
        });
        assert!(op.idle.lock().unwrap().len() <= 4);
    }
}
