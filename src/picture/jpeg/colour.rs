//! Four-channel JPEG to RGB, with the integer arithmetic of libjpeg and OpenCV.

/// YCCK to CMYK in place, as libjpeg does it: the first three are inverted RGB, K is kept.
pub(super) fn ycck_to_cmyk(samples: &mut [u8]) {
    for pixel in samples.chunks_exact_mut(4) {
        let y = i32::from(pixel[0]);
        let (cb, cr) = (i32::from(pixel[1]) - 128, i32::from(pixel[2]) - 128);
        // 1.402, 1.772, 0.344136 and 0.714136 in sixteenths of 16 bits, rounded to nearest.
        let r = y + ((91_881 * cr + 32_768) >> 16);
        let g = y + ((-22_554 * cb - 46_802 * cr + 32_768) >> 16);
        let b = y + ((116_130 * cb + 32_768) >> 16);
        for (sample, value) in pixel.iter_mut().zip([r, g, b]) {
            *sample = (255 - value).clamp(0, 255) as u8;
        }
    }
}

/// CMYK as Adobe stores it (inverted) to RGB in place, as OpenCV does it.
pub(super) fn cmyk_to_rgb(samples: &mut Vec<u8>) {
    let count = samples.len() / 4;
    for i in 0..count {
        let k = i32::from(samples[4 * i + 3]);
        for channel in 0..3 {
            let ink = i32::from(samples[4 * i + channel]);
            samples[3 * i + channel] = (k - (((255 - ink) * k) >> 8)) as u8;
        }
    }
    samples.truncate(3 * count);
}
