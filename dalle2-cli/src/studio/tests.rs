use std::io::{Cursor, ErrorKind, Write};
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dalle2::base::image::{Provenance, open};
use dalle2::{GenerateRequest, RgbImage};
use image::{DynamicImage, GrayImage, ImageBuffer, ImageFormat, Luma, Rgb};
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::client::{Answer, Server, pipeline, quick, read_answer, repository};
use super::gallery::Gallery;
use super::queue::{Message, Queue, State};
use super::task::Task;
use super::{limits, page, worker};

fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// An image with a coloured square in the middle.
fn square(side: u32) -> RgbImage {
    let inside = side / 4..side - side / 4;
    RgbImage::from_fn(side, side, |x, y| {
        if inside.contains(&x) && inside.contains(&y) { Rgb([200, 30, 40]) } else { Rgb([255; 3]) }
    })
}

fn base64_png(image: impl Into<DynamicImage>) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(png(image)))
}

/// A mask that generates the left half anew.
fn left_half(side: u32) -> GrayImage {
    GrayImage::from_fn(side, side, |x, _| Luma([if x < side / 2 { 255 } else { 0 }]))
}

fn generate(seed: u64) -> Value {
    json!({ "generate": { "caption": "red apple", "settings": quick(seed) } })
}

/// A job that would take minutes.
fn endless() -> Value {
    json!({ "generate": { "caption": "koala", "settings": { "images": 8, "steps": 250, "prior_steps": 250 } } })
}

/// Uploads an image and returns its name.
fn uploaded(server: &Server, bytes: &[u8]) -> String {
    let answer = server.upload(bytes);
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn number(answer: &Answer) -> u64 {
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()["id"].as_u64().unwrap()
}

/// The server generates the same image as the library, independent of earlier jobs.
fn still_works(server: &Server) {
    let images = server.images_of(&generate(7));
    let expected = GenerateRequest::new("red apple").seed(7).decoder_steps(4).prior_steps(4).size(32);
    let expected = pipeline().generate(expected).unwrap().images.remove(0);
    assert_eq!(image::load_from_memory(&server.png(&images[0])).unwrap().into_rgb8(), expected);
}

#[test]
fn every_task_stores_its_images_with_their_provenance() {
    let server = Server::start();
    still_works(&server);
    let dir = tempfile::tempdir().unwrap();
    let own = uploaded(&server, &png(square(64)));
    let mut settings = quick(11);
    settings["images"] = json!(2);
    let tasks = [
        (json!({ "generate": { "caption": "koala", "negative_caption": "red", "settings": settings } }), 2, "koala"),
        (json!({ "variations": { "image": own, "eta": 0.5, "settings": settings } }), 2, "variation of own image"),
        (
            json!({ "variations": { "image": own, "eta": 0, "noise": "seed", "settings": settings } }),
            2,
            "variation of own image",
        ),
        (
            json!({ "interpolate": { "from": { "image": own }, "to": { "caption": "koala" }, "frames": 3,
                "settings": quick(11) } }),
            3,
            "from own image to koala",
        ),
        (
            json!({ "text_diff": { "image": own, "from": "red heart", "to": "blue heart", "strength": 0.4, "frames": 2,
                "settings": quick(11) } }),
            2,
            "own image, from red heart to blue heart",
        ),
        (
            json!({ "mix": { "parts": [{ "part": { "image": own }, "weight": 1 },
                { "part": { "caption": "koala" }, "weight": -0.5 }], "settings": settings } }),
            2,
            "1 × own image + -0.5 × koala",
        ),
        (
            json!({ "inpaint": { "image": own, "mask": base64_png(left_half(64)), "caption": "koala",
                "settings": settings } }),
            2,
            "own image, inpainted: koala",
        ),
    ];
    for (task, count, caption) in tasks {
        let images = server.images_of(&task);
        assert_eq!(images.len(), count, "{task}");
        let frames = count == 3 || caption.contains("blue");
        for (index, name) in images.iter().enumerate() {
            let file = dir.path().join(format!("{name}.png"));
            std::fs::write(&file, server.png(name)).unwrap();
            let provenance = Provenance::read(&file).unwrap().unwrap();
            assert_eq!((provenance.caption.as_str(), provenance.model.as_str()), (caption, "models/emoji"), "{name}");
            assert_eq!(provenance.seed, Some(if frames { 11 } else { 11 + index as u64 }), "{name}");
            assert!(provenance.software.starts_with("dalle2 "));
            assert_eq!(open(&file).unwrap().dimensions(), (32, 32));
        }
    }
    let listed = server.get("/api/images").json();
    assert_eq!(listed.as_array().unwrap().len(), 1 + 1 + 15);
    let labels = |task: &str| -> Vec<String> {
        let of_task = listed.as_array().unwrap().iter().filter(|image| image["origin"] == task);
        of_task.map(|image| image["label"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(labels("interpolate"), ["1.00", "0.50", "0.00"]);
    assert_eq!(labels("text_diff"), ["0.40", "0.20"]);
}

#[test]
fn inpainting_keeps_what_is_not_white() {
    let server = Server::start();
    let own = uploaded(&server, &png(square(32)));
    let task = json!({ "inpaint": { "image": own, "mask": base64_png(left_half(32)), "caption": "koala",
        "settings": quick(3) } });
    let result = image::load_from_memory(&server.png(&server.images_of(&task)[0])).unwrap().into_rgb8();
    let same = |columns: std::ops::Range<u32>| {
        columns
            .flat_map(|x| (0..32).map(move |y| (x, y)))
            .all(|(x, y)| result.get_pixel(x, y) == square(32).get_pixel(x, y))
    };
    assert!(same(16..32) && !same(0..16));
}

#[test]
fn a_listening_page_is_told_of_steps_previews_and_results() {
    let server = Server::start();
    let id = number(&server.submit(&generate(5)));
    let mut stages = Vec::new();
    let mut previews = 0;
    let mut images = 0;
    server.listen(|event, data| {
        match event {
            "step" => {
                assert_eq!(data["job"], id);
                let (step, total) = (data["step"].as_u64().unwrap(), data["total"].as_u64().unwrap());
                assert!((1..=total).contains(&step), "{data}");
                let stage = data["stage"].as_str().unwrap().to_owned();
                if !stages.contains(&stage) {
                    stages.push(stage);
                }
                for preview in data["previews"].as_array().unwrap() {
                    let encoded = preview.as_str().unwrap().strip_prefix("data:image/png;base64,").unwrap();
                    let image = image::load_from_memory(&STANDARD.decode(encoded).unwrap()).unwrap();
                    assert_eq!(image.width(), 32);
                    previews += 1;
                }
            }
            "gallery" => images = data.as_array().unwrap().len(),
            "jobs" => return data[0]["state"] == "done",
            other => panic!("unknown event {other}"),
        }
        false
    });
    // The first steps may have been made before the test listened.
    assert_eq!(stages.last().map(String::as_str), Some("decoder"));
    assert!(previews > 0);
    assert_eq!(images, 1, "a page has the images of a finished job");
}

#[test]
fn a_full_queue_refuses_and_cancelling_is_prompt() {
    let server = Server::start();
    let running = number(&server.submit(&endless()));
    server.wait_for(running, |job| job["progress"]["step"].as_u64().is_some());
    let waiting: Vec<u64> = (0..limits::WAITING).map(|_| number(&server.submit(&endless()))).collect();
    for (place, id) in waiting.iter().enumerate() {
        let job = server.job(*id);
        assert_eq!((job["state"].as_str(), job["position"].as_u64()), (Some("waiting"), Some(1 + place as u64)));
    }
    let refused = server.submit(&generate(1));
    assert_eq!(refused.status, 503);
    assert!(refused.error().contains("8 jobs are waiting"), "{}", refused.error());

    // What waits goes at once, and what comes after it moves up.
    assert_eq!(server.cancel(waiting[0]).json()["state"], "cancelled");
    assert_eq!(server.job(waiting[1])["position"], 1);
    assert!(waiting[1..].iter().all(|id| server.cancel(*id).status == 200));
    server.cancel(running);
    let job = server.wait_for(running, |job| job["state"] != "running");
    assert_eq!(job["state"], "cancelled");
    assert_eq!(job["images"], json!([]));

    // What has ended stays as it is.
    assert_eq!(server.cancel(running).json()["state"], "cancelled");
    assert_eq!(server.cancel(999).status, 404);
    still_works(&server);
}

#[test]
fn after_cancelling_at_most_the_step_that_was_on_its_way_is_told() {
    let queue = Queue::new();
    let gallery = Gallery::new("models/emoji".into()).unwrap();
    let mut messages = queue.listen();
    let steps = |messages: &mut broadcast::Receiver<Message>| {
        std::iter::from_fn(|| messages.try_recv().ok()).filter(|message| matches!(message, Message::Step(_))).count()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| worker::run(&pipeline(), &queue, &gallery));
        let task: Task = serde_json::from_value(endless()).unwrap();
        let id = queue.submit(task, "koala".into()).unwrap().id;
        while steps(&mut messages) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        queue.cancel(id);
        // Earlier messages are not repeated.
        steps(&mut messages);
        while queue.get(id).unwrap().state == State::Running {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(queue.get(id).unwrap().state, State::Cancelled);
        assert!(steps(&mut messages) <= 1);
        queue.close();
    });
    assert!(gallery.list().is_empty());
}

#[test]
fn a_port_in_use_is_said_before_the_model_is_loaded() {
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = occupied.local_addr().unwrap().port();
    let message = format!("{:#}", super::server::bind(port).unwrap_err());
    assert!(message.contains(&format!("port {port} is in use")) && message.contains("--port"), "{message}");
}

#[test]
fn the_end_comes_soon_though_a_job_runs_and_a_page_listens() {
    let mut server = Server::start();
    let running = number(&server.submit(&endless()));
    number(&server.submit(&endless()));
    server.wait_for(running, |job| job["progress"]["step"].as_u64().is_some());
    let mut listening = server.connect();
    write!(listening, "GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\r\n", server.port).unwrap();
    let idle = server.connect();
    let took = server.end();
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert!(std::net::TcpStream::connect(("127.0.0.1", server.port)).is_err());
    drop((listening, idle));
}

#[test]
fn only_the_own_page_and_programs_on_this_machine_may_ask() {
    let server = Server::start();
    let port = server.port;
    let own = format!("Host: 127.0.0.1:{port}");
    let request = |line: &str, headers: &str| {
        server
            .raw(&format!("{line} HTTP/1.1\r\n{headers}\r\nContent-Type: application/json\r\nContent-Length: 2"), b"{}")
    };
    let refused = [
        // A name that somebody else points to 127.0.0.1.
        "Host: studio.example".to_owned(),
        format!("Host: studio.example:{port}"),
        "Host: 127.0.0.1".to_owned(),
        format!("Host: 127.0.0.1:{}", port ^ 1),
        format!("Host: 127.0.0.1:{port}\r\nHost: studio.example"),
        "X-None: 1".to_owned(),
        format!("{own}\r\nOrigin: https://studio.example"),
        format!("{own}\r\nOrigin: http://127.0.0.1:{}", port ^ 1),
        format!("{own}\r\nOrigin: https://127.0.0.1:{port}"),
        format!("{own}\r\nOrigin: null"),
        format!("{own}\r\nSec-Fetch-Site: cross-site"),
        format!("{own}\r\nSec-Fetch-Site: same-site"),
    ];
    for headers in &refused {
        for line in ["POST /api/jobs", "GET /api/images", "GET /assets/studio.js"] {
            let answer = request(line, headers);
            // Without any Host the request is no HTTP/1.1.
            assert!(
                answer.status == 403 || (headers.starts_with("X-") && answer.status == 400),
                "{headers}: {answer:?}"
            );
            assert!(!answer.head.contains("access-control"), "{}", answer.head);
        }
    }
    let preflight = request("OPTIONS /api/jobs", &format!("{own}\r\nOrigin: http://studio.example"));
    assert_eq!(preflight.status, 403);
    assert_eq!(
        request("GET /api/images", &format!("Host: localhost:{port}\r\nOrigin: http://localhost:{port}")).status,
        200
    );
    // A link from another page opens the studio; a script of that page cannot read it.
    let followed = request("GET /", &format!("{own}\r\nSec-Fetch-Site: cross-site"));
    assert_eq!(followed.status, 200);
    for answer in [followed, server.get("/api/none"), server.get("/api/model"), request("POST /api/jobs", "Host: a")] {
        for header in [
            "content-security-policy: default-src 'none'",
            "x-content-type-options: nosniff",
            "cache-control: no-store",
            "cross-origin-resource-policy: same-origin",
        ] {
            assert!(answer.head.contains(header), "{header}: {}", answer.head);
        }
    }
    still_works(&server);
}

#[test]
fn a_body_of_a_gibibyte_is_refused_and_not_read() {
    const GIBIBYTE: usize = 1 << 30;
    let server = Server::start();
    let host = format!("Host: 127.0.0.1:{}", server.port);
    let chunk = vec![b'['; 1 << 20];
    for path in ["/api/images", "/api/jobs"] {
        // With a length, and in chunks without one.
        for chunked in [false, true] {
            let mut stream = server.connect();
            let length =
                if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {GIBIBYTE}") };
            write!(stream, "POST {path} HTTP/1.1\r\n{host}\r\nContent-Type: application/json\r\n{length}\r\n\r\n")
                .unwrap();
            let mut sent = 0;
            while sent < GIBIBYTE {
                let written = if chunked {
                    write!(stream, "{:x}\r\n", chunk.len())
                        .and_then(|()| stream.write_all(&chunk))
                        .and_then(|()| stream.write_all(b"\r\n"))
                } else {
                    stream.write_all(&chunk)
                };
                match written {
                    Ok(()) => sent += chunk.len(),
                    Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => break,
                    Err(e) => panic!("{e}"),
                }
            }
            let answer = read_answer(stream);
            assert_eq!(answer.status, 413, "{path}, chunked {chunked}: {answer:?}");
            assert!(answer.error().contains("at most"), "{}", answer.error());
            // The limit, and what lies in the buffers of the connection.
            assert!(sent <= limits::UPLOAD + (16 << 20), "{sent} bytes were taken");
        }
    }
    still_works(&server);
}

#[test]
fn json_that_is_none_and_values_out_of_range_are_named() {
    let server = Server::start();
    let own = uploaded(&server, &png(square(16)));
    let raw = |body: &str| server.send("POST", "/api/jobs", "application/json", body.as_bytes());
    let generate = |settings: &str| format!(r#"{{"generate": {{"caption": "koala", "settings": {settings}}}}}"#);
    let cases = [
        (400, String::new(), "EOF"),
        (400, "{".into(), "line 1"),
        (400, r#"{"generate": {"caption": "koala"}"#.into(), "line 1"),
        (400, "\u{0}\u{ff}".into(), "line 1"),
        (400, generate(r#"{"guidance": NaN}"#), "line 1 column"),
        (400, generate(r#"{"guidance": Infinity}"#), "line 1 column"),
        (400, generate(r#"{"guidance": 1e999}"#), "out of range"),
        (400, "[".repeat(100_000), "line 1"),
        (400, "[]".into(), "line 1"),
        (422, r#"{"paint": {}}"#.into(), "unknown variant `paint`"),
        (422, r#"{"generate": {}}"#.into(), "missing field `caption`"),
        (422, r#"{"generate": {"caption": 7}}"#.into(), "generate.caption"),
        (422, r#"{"generate": {"caption": "  "}}"#.into(), "must not be empty"),
        (422, format!(r#"{{"generate": {{"caption": "{}"}}}}"#, "a".repeat(1001)), "1000"),
        (422, generate(r#"{"stepps": 3}"#), "unknown field `stepps`"),
        (422, generate(r#"{"images": 0}"#), "settings.images"),
        (422, generate(r#"{"images": 9}"#), "between 1 and 8"),
        (422, generate(r#"{"images": 1e6}"#), "images"),
        (422, generate(r#"{"steps": 0}"#), "settings.steps"),
        (422, generate(r#"{"steps": 251}"#), "between 1 and 250"),
        (422, generate(r#"{"prior_steps": 1000000}"#), "settings.prior_steps"),
        (422, generate(r#"{"guidance": -1}"#), "settings.guidance"),
        (422, generate(r#"{"seed": -1}"#), "settings.seed"),
        (422, generate(r#"{"seed": 9007199254740992}"#), "settings.seed"),
        (422, generate(r#"{"size": 33}"#), "[32, 128]"),
        (422, r#"{"variations": {"image": "p999", "eta": 0.5}}"#.into(), "no image is named p999"),
        (422, r#"{"variations": {"image": "../p1", "eta": 0.5}}"#.into(), "is not an image name"),
        (422, format!(r#"{{"variations": {{"image": "{own}", "eta": 1.5}}}}"#), "eta"),
        (422, format!(r#"{{"variations": {{"image": "{own}", "eta": null}}}}"#), "variations.eta"),
        (
            422,
            format!(r#"{{"text_diff": {{"image": "{own}", "to": "a", "strength": 1.01, "frames": 1}}}}"#),
            "strength",
        ),
        (422, format!(r#"{{"text_diff": {{"image": "{own}", "to": "a", "strength": 1, "frames": 17}}}}"#), "frames"),
        (
            422,
            format!(r#"{{"interpolate": {{"from": {{"image": "{own}"}}, "to": {{"caption": "a"}}, "frames": 1}}}}"#),
            "between 2 and 16",
        ),
        (422, r#"{"mix": {"parts": []}}"#.into(), "parts"),
        (422, r#"{"mix": {"parts": [{"part": {"caption": "a"}, "weight": 99}]}}"#.into(), "weight"),
    ];
    for (status, body, word) in cases {
        let answer = raw(&body);
        let shown: String = body.chars().take(90).collect();
        assert_eq!(answer.status, status, "{shown}: {answer:?}");
        assert!(answer.error().contains(word), "{shown}: {}", answer.error());
    }
    assert_eq!(server.send("POST", "/api/jobs", "text/plain", b"{}").status, 415);
    assert_eq!(server.send("PUT", "/api/jobs", "application/json", b"{}").status, 405);
    assert_eq!(server.get("/api/jobs/x").status, 404);
    for path in ["/api/images/p0.png", "/api/images/..%2fp1", "/etc/passwd", "/assets/..%2fmain.rs"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    assert!(server.get("/api/jobs").json().as_array().unwrap().is_empty(), "nothing was queued");

    // The job reports errors of the pipeline.
    let ends = json!({ "image": own });
    let job = server.run(&json!({ "interpolate": { "from": ends, "to": ends, "frames": 2, "settings": quick(1) } }));
    assert_eq!(job["state"], "failed");
    assert!(job["error"].as_str().unwrap().contains("same embedding"), "{job}");
    let same = json!({ "text_diff": { "image": own, "from": "koala", "to": "koala", "strength": 0.5, "frames": 1, "settings": quick(1) } });
    assert!(server.run(&same)["error"].as_str().unwrap().contains("same embedding"));
    still_works(&server);
}

/// The header of a PNG of this size without data.
fn header_only(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = png(RgbImage::new(1, 1));
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let sum = crc32fast::hash(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[test]
fn uploads_of_any_mode_and_size_are_stored_or_refused_with_a_reason() {
    let server = Server::start();
    let fixture =
        |name: &str| std::fs::read(repository().join("dalle2-core/tests/fixtures/images").join(name)).unwrap();
    let truncated = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.len() / 2);
        bytes
    };
    let refused: [(Vec<u8>, &str); 9] = [
        (Vec::new(), "PNG, JPEG or WebP"),
        (b"GIF89a".to_vec(), "PNG, JPEG or WebP"),
        (vec![0xff; 1000], "PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(), "PNG, JPEG or WebP"),
        (truncated(png(square(256))), ""),
        (truncated(fixture("cmyk.jpg")), ""),
        (header_only(0, 5), ""),
        // Decompressed, it would fill the memory.
        (header_only(60_000, 60_000), "60000×60000"),
        (header_only(8192, 8192), "25165824"),
    ];
    for (bytes, word) in refused {
        let answer = server.upload(&bytes);
        assert_eq!(answer.status, 422, "{answer:?}");
        let error = answer.error();
        assert!(error.contains(word) && !error.contains("tmp"), "{error}");
    }
    let deep = ImageBuffer::<Rgb<u16>, _>::from_fn(20, 20, |x, y| Rgb([x as u16 * 3000, y as u16 * 3000, 0]));
    let accepted = [
        (png(RgbImage::new(1, 1)), 1),
        (png(RgbImage::new(3000, 1)), 1),
        (fixture("cmyk.jpg"), 0),
        (png(deep), 20),
        (png(GrayImage::new(7, 9)), 7),
        (png(image::RgbaImage::new(40, 30)), 30),
        (png(square(1200)), limits::STORED_SIDE),
    ];
    for (bytes, side) in accepted {
        let answer = server.upload(&bytes);
        assert_eq!(answer.status, 201, "{answer:?}");
        let image = answer.json();
        assert_eq!(image["width"], image["height"]);
        if side > 0 {
            assert_eq!(image["width"], side);
        }
        let task = json!({ "variations": { "image": image["id"], "eta": 0.5, "settings": quick(1) } });
        assert_eq!(server.images_of(&task).len(), 1, "{image}");
    }
    assert_eq!(server.get("/api/images").json()[1]["caption"], "own image");
    still_works(&server);
}

#[test]
fn masks_that_do_not_fit_are_refused_with_a_reason() {
    let server = Server::start();
    let own = uploaded(&server, &png(square(32)));
    let cases = [
        ("not base64!".to_owned(), "inpaint.mask"),
        (STANDARD.encode(b"no image"), "PNG, JPEG or WebP"),
        (STANDARD.encode(header_only(60_000, 60_000)), "60000×60000"),
        (base64_png(left_half(16)), "16 × 16"),
        (base64_png(GrayImage::new(32, 31)), "the mask is empty"),
        (base64_png(GrayImage::new(32, 32)), "the mask is empty"),
        (base64_png(GrayImage::from_pixel(32, 31, Luma([255]))), "32 × 31"),
    ];
    for (mask, word) in cases {
        let answer = server.submit(&json!({ "inpaint": { "image": own, "mask": mask, "caption": "koala" } }));
        assert_eq!(answer.status, 422, "{answer:?}");
        assert!(answer.error().contains(word), "{}", answer.error());
    }
    still_works(&server);
}

#[test]
fn listeners_and_images_are_bounded() {
    let server = Server::start();
    let listeners: Vec<_> = (0..limits::STREAMS)
        .map(|_| {
            let mut stream = server.connect();
            write!(stream, "GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\r\n", server.port).unwrap();
            let mut first = [0; 12];
            std::io::Read::read_exact(&mut stream, &mut first).unwrap();
            assert_eq!(&first, b"HTTP/1.1 200");
            stream
        })
        .collect();
    assert_eq!(server.get("/api/events").status, 503);
    drop(listeners);

    let first = uploaded(&server, &png(square(2)));
    for _ in 0..limits::GALLERY {
        uploaded(&server, &png(square(2)));
    }
    assert_eq!(server.get("/api/images").json().as_array().unwrap().len(), limits::GALLERY);
    assert_eq!(server.get(&format!("/api/images/{first}.png")).status, 404);
    still_works(&server);
}

#[test]
fn the_page_loads_what_is_embedded_and_nothing_else() {
    let server = Server::start();
    for (name, _, text) in page::ASSETS.iter().chain([&("", "", page::HTML)]) {
        // A name space is no address that anything is loaded from.
        let text = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("http:") && !text.contains("https:"), "{name} names another server");
        for start in ["/assets/", "from \"./"] {
            for (at, _) in text.match_indices(start) {
                let file = text[at + start.len()..].split('"').next().unwrap();
                assert_eq!(server.get(&format!("/assets/{file}")).status, 200, "{name} loads {file}");
            }
        }
    }
}
