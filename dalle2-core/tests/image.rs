//! Image files of every kind, damaged ones, and resizing against PyTorch.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
};

use burn::{
    prelude::*,
    tensor::{TensorData, Tolerance},
};
use dalle2_core::{
    Error,
    image::{RgbImage, decode, open, resize_bicubic, save_png},
};
use image::{DynamicImage, GrayAlphaImage, GrayImage, ImageBuffer, ImageFormat, Rgb, RgbaImage};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn near(found: &Rgb<u8>, expected: [u8; 3], by: u8) -> bool {
    found.0.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= by)
}

/// `low` enlarged by `torch.nn.functional.interpolate(…, antialias=True)`.
#[test]
fn bicubic_equals_pytorch() {
    let bytes = fs::read(fixture("upscale.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let read = |name: &str| {
        let view = file.tensor(name).unwrap();
        let values: Vec<f32> = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        Tensor::<4>::from_data(TensorData::new(values, view.shape().to_vec()), &Device::flex())
    };
    let found = resize_bicubic(read("low"), [32, 32]);
    found.into_data().assert_approx_eq::<f32>(&read("bicubic_antialias").into_data(), Tolerance::absolute(1e-5));
}

/// Numbers shrunk by Pillow 13 in floating point (`mode="F"`, `Resampling.BICUBIC`): 7×5 to 3×4.
#[test]
fn bicubic_equals_pillow_when_shrinking() {
    let values: Vec<f32> = (0..35).map(|i| ((i * i + 7 * i) % 23) as f32).collect();
    let x = Tensor::<4>::from_data(TensorData::new(values, [1, 1, 5, 7]), &Device::flex());
    const EXPECTED: [f32; 12] = [
        6.12303, 13.56093, 13.85508, 6.90775, 10.29894, 13.42782, 11.43035, 9.39177, 13.67477, 10.74699, 5.80942,
        11.38631,
    ];
    let found: Vec<f32> = resize_bicubic(x, [4, 3]).try_into_vec_as().unwrap();
    assert_eq!(found.len(), EXPECTED.len());
    for (f, e) in found.iter().zip(EXPECTED) {
        assert!((f - e).abs() < 2e-5, "{found:?}");
    }
}

#[test]
fn every_pixel_format_becomes_rgb() {
    let dir = tempfile::tempdir().unwrap();
    let save = |name: &str, image: DynamicImage, format| {
        let path = dir.path().join(name);
        image.save_with_format(&path, format).unwrap();
        open(&path).unwrap()
    };
    let png = ImageFormat::Png;
    let grey = save("grey.png", GrayImage::from_pixel(3, 2, image::Luma([77])).into(), png);
    assert_eq!((grey.dimensions(), grey.get_pixel(2, 1).0), ((3, 2), [77; 3]));
    let deep = ImageBuffer::from_pixel(2, 2, Rgb([65535u16, 257 * 100, 257 * 7]));
    assert_eq!(save("deep.png", DynamicImage::ImageRgb16(deep), png).get_pixel(0, 0).0, [255, 100, 7]);
    // Half transparent red on white; fully transparent black is white.
    let clear = save("clear.png", RgbaImage::from_pixel(2, 2, image::Rgba([255, 0, 0, 128])).into(), png);
    assert_eq!(clear.get_pixel(1, 1).0, [255, 127, 127]);
    let clear = save("clear_grey.png", GrayAlphaImage::from_pixel(2, 2, image::LumaA([0, 0])).into(), png);
    assert_eq!(clear.get_pixel(1, 1).0, [255; 3]);
    let webp = save("a.webp", RgbaImage::from_pixel(4, 4, image::Rgba([9, 8, 7, 255])).into(), ImageFormat::WebP);
    assert_eq!(webp.get_pixel(3, 3).0, [9, 8, 7]);
    // A wrong name does not matter.
    assert_eq!(save("png.jpg", RgbImage::from_pixel(1, 1, Rgb([1, 2, 3])).into(), png).get_pixel(0, 0).0, [1, 2, 3]);
}

/// More of what is met in data sets: 16 bits with and without colour and transparency, JPEG without colour.
#[test]
fn deep_and_grey_images_become_rgb() {
    let encode = |image: DynamicImage, format| {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        decode(&bytes.into_inner(), "picture").unwrap()
    };
    let png = ImageFormat::Png;
    let deep = |image: DynamicImage| encode(image, png).get_pixel(0, 0).0;
    assert_eq!(deep(ImageBuffer::from_pixel(2, 2, image::Luma([257u16 * 40])).into()), [40; 3]);
    assert_eq!(deep(ImageBuffer::from_pixel(2, 2, image::LumaA([0u16, 257 * 51])).into()), [204; 3]);
    let half = ImageBuffer::from_pixel(2, 2, image::Rgba([65535u16, 0, 257 * 9, 257 * 255]));
    assert_eq!(deep(half.into()), [255, 0, 9]);
    let grey = encode(GrayImage::from_pixel(16, 8, image::Luma([90])).into(), ImageFormat::Jpeg);
    assert!(grey.dimensions() == (16, 8) && near(grey.get_pixel(9, 3), [90; 3], 2));
}

/// All eight orientations that Exif has: the brightest corner of the stored image must come out where the standard says.
#[test]
fn every_orientation_of_a_camera_is_applied() {
    let stored = RgbImage::from_fn(32, 16, |x, y| Rgb([if x < 8 && y < 8 { 250 } else { 10 }; 3]));
    let mut plain = Cursor::new(Vec::new());
    stored.write_to(&mut plain, ImageFormat::Jpeg).unwrap();
    let plain = plain.into_inner();
    // Where the first row and column of the stored image belong: TIFF 6.0, tag 274.
    let corners = [[0, 0], [1, 0], [1, 1], [0, 1], [0, 0], [1, 0], [1, 1], [0, 1]];
    for (orientation, corner) in (1u8..).zip(corners) {
        let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        let mut bytes = plain[..2].to_vec();
        bytes.extend([0xff, 0xe1]);
        bytes.extend((exif.len() as u16 + 2).to_be_bytes());
        bytes.extend(exif);
        bytes.extend(&plain[2..]);
        let image = decode(&bytes, "turned.jpg").unwrap();
        let turned = orientation > 4;
        assert_eq!(image.dimensions(), if turned { (16, 32) } else { (32, 16) }, "{orientation}");
        let [x, y] = [corner[0] * (image.width() - 5) + 2, corner[1] * (image.height() - 5) + 2];
        assert!(image.get_pixel(x, y).0[0] > 200, "{orientation}: {:?}", image.get_pixel(x, y));
        let bright = image.pixels().filter(|pixel| pixel.0[0] > 128).count();
        assert!((40..90).contains(&bright), "{orientation}: {bright}");
    }
}

/// 24×16 pixels, red on the left and blue on the right.
#[test]
fn files_of_other_programs_are_read() {
    for (name, by) in [("palette.png", 0), ("lossy.webp", 12), ("cmyk.jpg", 12)] {
        let image = open(fixture("images").join(name)).unwrap();
        assert_eq!(image.dimensions(), (24, 16), "{name}");
        assert!(near(image.get_pixel(2, 2), [220, 30, 30], by), "{name}: {:?}", image.get_pixel(2, 2));
        assert!(near(image.get_pixel(21, 13), [30, 30, 220], by), "{name}: {:?}", image.get_pixel(21, 13));
    }
    let image = open(fixture("images/palette_alpha.png")).unwrap();
    assert!(near(image.get_pixel(2, 2), [237, 142, 142], 2), "{:?}", image.get_pixel(2, 2));
    // Exif orientation 6: the camera was turned, the picture's left is at the top.
    let image = open(fixture("images/rotated.jpg")).unwrap();
    assert_eq!(image.dimensions(), (16, 24));
    assert!(near(image.get_pixel(2, 2), [220, 30, 30], 12) && near(image.get_pixel(2, 21), [30, 30, 220], 12));
}

#[test]
fn damaged_and_foreign_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("picture.png");
    let error = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let error = open(&path).unwrap_err();
        assert!(error.to_string().contains("picture.png"), "{error}");
        error
    };
    let noise = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * y) as u8, (x * 31) as u8, (y * 57) as u8]));
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
        let mut whole = Cursor::new(Vec::new());
        noise.write_to(&mut whole, format).unwrap();
        let whole = whole.into_inner();
        fs::write(&path, &whole).unwrap();
        assert_eq!(open(&path).unwrap().dimensions(), (64, 64));
        for part in [2, 3, 10] {
            let error = error(&whole[..whole.len() - whole.len() / part]);
            assert!(matches!(error, Error::Image { .. }), "{format:?} cut by 1/{part}: {error:?}");
        }
    }
    for bytes in [&b""[..], b"hello", b"GIF89a\x01\x00\x01\x00\x00\x00\x00"] {
        let error = error(bytes);
        assert!(error.to_string().contains("expected PNG, JPEG or WebP"), "{error}");
    }
    assert!(matches!(error(b"\x89PNG\r\n\x1a\nnothing"), Error::Image { .. }));
    assert!(matches!(error(b"\xff\xd8\xff\xd9"), Error::Image { .. }));
    assert!(matches!(open(dir.path().join("absent.png")), Err(Error::Io { .. })));
    assert!(matches!(open(dir.path()), Err(Error::Io { .. })));
}

/// A few hundred bytes that claim to be 12 gigapixels.
#[test]
fn a_decompression_bomb_is_refused_before_it_is_decoded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb.png");
    let mut small = Cursor::new(Vec::new());
    RgbImage::new(1, 1).write_to(&mut small, ImageFormat::Png).unwrap();
    let mut bytes = small.into_inner();
    for (w, h) in [(110_000u32, 110_000u32), (16_384, 16_384), (1, 20_000)] {
        bytes[16..20].copy_from_slice(&w.to_be_bytes());
        bytes[20..24].copy_from_slice(&h.to_be_bytes());
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        fs::write(&path, &bytes).unwrap();
        let message = open(&path).unwrap_err().to_string();
        assert!(message.contains("bomb.png") && message.contains(&format!("{w}×{h}")), "{message}");
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[test]
fn png_is_written_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let image = RgbImage::from_fn(5, 4, |x, y| Rgb([x as u8, y as u8, 200]));
    let path = dir.path().join("new/folder/a.png");
    save_png(&image, &path).unwrap();
    save_png(&image, &path).unwrap();
    assert_eq!(open(&path).unwrap(), image);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing temporary is left");

    // A file stands where the folder would be.
    let message = save_png(&image, path.join("b.png")).unwrap_err().to_string();
    assert!(message.contains("a.png"), "{message}");
    let message = save_png(&RgbImage::new(0, 3), dir.path().join("empty.png")).unwrap_err().to_string();
    assert!(message.contains("empty.png"), "{message}");
    assert!(!dir.path().join("empty.png").exists());
}
