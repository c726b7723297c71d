//! A headless Chromium for tests: Debian's `chromium` and `chromium-driver`, spoken to in the WebDriver protocol
//! (<https://www.w3.org/TR/webdriver2/>), which is JSON over HTTP.
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Seconds that a command may take.
const TIMEOUT: u64 = 90;
/// Name of the member that holds an element's reference.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys that are not characters, by the code points that WebDriver gives them.
pub mod keys {
    pub const BACKSPACE: char = '\u{e003}';
    pub const ENTER: char = '\u{e007}';
    pub const LEFT: char = '\u{e012}';
    pub const RIGHT: char = '\u{e014}';
    pub const DOWN: char = '\u{e015}';
}

/// The window of the browser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Screen {
    /// A window of 1200 × 800 pixels, light colours.
    Desktop,
    /// A phone held upright, 390 × 844 pixels, dark colours.
    DarkPhone,
}

/// A browser that ends with the value.
pub struct Browser {
    session: String,
    files: TempDir,
    // Ends the browser too.
    _driver: Driver,
}

/// Whether the test can run. Without a browser it says so and is skipped, but not in CI.
///
/// # Panics
/// When `CI` is set and there is no browser.
pub fn installed() -> bool {
    let missing: Vec<&str> = ["chromium", "chromedriver"]
        .into_iter()
        .filter(|program| {
            let status = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            !status.is_ok_and(|status| status.success())
        })
        .collect();
    if missing.is_empty() {
        return true;
    }
    let message = format!("{} missing: apt-get install chromium chromium-driver", missing.join(" and "));
    assert!(std::env::var_os("CI").is_none(), "{message}");
    eprintln!("SKIPPED, this test needs a browser: {message}");
    false
}

/// A running chromedriver.
struct Driver {
    child: Child,
    port: u16,
}

impl Driver {
    /// Starts one on a port that is free, which it prints.
    fn start() -> Self {
        let mut child = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().expect("chromedriver names its port").unwrap();
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end_matches('.').parse().unwrap();
            }
        };
        // Reads the remaining output, so that the driver never blocks.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, port }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a command, and gives back the value of the answer.
fn send(method: minreq::Method, url: &str, body: Option<Value>) -> Value {
    let mut request = minreq::Request::new(method, url).with_timeout(TIMEOUT);
    if let Some(body) = body {
        request = request.with_header("Content-Type", "application/json").with_body(body.to_string());
    }
    let response = request.send().unwrap_or_else(|e| panic!("{url}: {e}"));
    let mut answer: Value = serde_json::from_slice(response.as_bytes()).unwrap();
    assert!(response.status_code == 200, "{url}: {answer:#}");
    answer["value"].take()
}

impl Browser {
    /// Starts a browser with its own profile and download folder.
    pub fn open(screen: Screen) -> Self {
        let driver = Driver::start();
        let files = tempfile::tempdir().unwrap();
        let downloads = files.path().join("downloads");
        fs::create_dir(&downloads).unwrap();
        let mut args = vec![
            "--headless=new".to_owned(),
            // In a container there is no user namespace for the sandbox; only our own pages are opened.
            "--no-sandbox".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-gpu".to_owned(),
            "--window-size=1200,800".to_owned(),
            format!("--user-data-dir={}", files.path().join("profile").display()),
        ];
        let mut options = json!({
            "prefs": { "download.default_directory": downloads, "download.prompt_for_download": false },
        });
        if screen == Screen::DarkPhone {
            args.push("--blink-settings=preferredColorScheme=0".to_owned());
            options["mobileEmulation"] =
                json!({ "deviceMetrics": { "width": 390, "height": 844, "pixelRatio": 2.0, "touch": true } });
        }
        options["args"] = json!(args);
        let url = format!("http://127.0.0.1:{}/session", driver.port);
        let capabilities = json!({ "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "WARNING" } });
        let capabilities = json!({ "capabilities": { "alwaysMatch": capabilities } });
        let session = send(minreq::Method::Post, &url, Some(capabilities));
        let session = format!("{url}/{}", session["sessionId"].as_str().unwrap());
        Self { session, files, _driver: driver }
    }

    fn post(&self, command: &str, body: Value) -> Value {
        send(minreq::Method::Post, &format!("{}/{command}", self.session), Some(body))
    }

    fn get(&self, command: &str) -> Value {
        send(minreq::Method::Get, &format!("{}/{command}", self.session), None)
    }

    /// The path of an element's commands.
    fn element(&self, selector: &str) -> String {
        let element = self.post("element", json!({ "using": "css selector", "value": selector }));
        format!("element/{}", element[ELEMENT].as_str().unwrap())
    }

    /// Opens a file of this machine.
    pub fn goto_file(&self, file: &Path) {
        self.goto(&format!("file://{}", file.canonicalize().unwrap().display()));
    }

    /// Opens an address.
    pub fn goto(&self, url: &str) {
        self.post("url", json!({ "url": url }));
    }

    /// Loads the page again.
    pub fn reload(&self) {
        self.post("refresh", json!({}));
    }

    /// Presses and releases keys, one after the other.
    pub fn press(&self, keys: impl IntoIterator<Item = char>) {
        let actions =
            keys.into_iter().flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key })));
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": actions.collect::<Vec<_>>() });
        self.post("actions", json!({ "actions": [keyboard] }));
    }

    /// Clicks on an element.
    pub fn click(&self, selector: &str) {
        self.post(&format!("{}/click", self.element(selector)), json!({}));
    }

    /// Types into an element.
    pub fn type_into(&self, selector: &str, text: &str) {
        self.post(&format!("{}/value", self.element(selector)), json!({ "text": text }));
    }

    /// Draws a line over an element with the button held down, through points that are shares of its width and height.
    pub fn drag(&self, selector: &str, points: &[(f64, f64)]) {
        self.run(&format!("document.querySelector({selector:?}).scrollIntoView({{ block: 'center' }})"));
        let area = self.get(&format!("{}/rect", self.element(selector)));
        let side = |name: &str| area[name].as_f64().unwrap();
        let element = self.post("element", json!({ "using": "css selector", "value": selector }));
        let moves = points.iter().map(|(x, y)| {
            // From the middle of the element.
            let [x, y] = [(x - 0.5) * side("width"), (y - 0.5) * side("height")].map(|offset| offset.round() as i64);
            json!({ "type": "pointerMove", "duration": 20, "origin": element, "x": x, "y": y })
        });
        let mut actions: Vec<Value> = moves.collect();
        actions.insert(1, json!({ "type": "pointerDown", "button": 0 }));
        actions.push(json!({ "type": "pointerUp", "button": 0 }));
        let pointer = json!({ "type": "pointer", "id": "mouse", "actions": actions });
        self.post("actions", json!({ "actions": [pointer] }));
    }

    /// Waits until a script returns true.
    pub fn wait_for(&self, what: &str, script: &str) {
        let start = Instant::now();
        while self.run(script) != true {
            assert!(start.elapsed() < Duration::from_secs(120), "timeout while waiting for {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Console errors, warnings and failed requests since the last call.
    pub fn console(&self) -> Vec<String> {
        let entries = self.post("se/log", json!({ "type": "browser" }));
        entries.as_array().unwrap().iter().map(|entry| format!("{}: {}", entry["level"], entry["message"])).collect()
    }

    /// The visible text of an element.
    pub fn text(&self, selector: &str) -> String {
        self.get(&format!("{}/text", self.element(selector))).as_str().unwrap().to_owned()
    }

    /// Whether an element is shown.
    pub fn shows(&self, selector: &str) -> bool {
        self.get(&format!("{}/displayed", self.element(selector))).as_bool().unwrap()
    }

    /// Runs a script and returns its value.
    pub fn run(&self, script: &str) -> Value {
        self.post("execute/sync", json!({ "script": script, "args": [] }))
    }

    /// The page as a PNG.
    pub fn screenshot(&self) -> Vec<u8> {
        STANDARD.decode(self.get("screenshot").as_str().unwrap()).unwrap()
    }

    /// The only finished download, moved out of the way of the next one.
    pub fn download(&self, into: &Path) -> PathBuf {
        let start = Instant::now();
        loop {
            let mut files =
                fs::read_dir(self.files.path().join("downloads")).unwrap().map(|entry| entry.unwrap().path());
            // What is not finished has another ending, or is an empty file that keeps the name.
            let finished = |file: &PathBuf| {
                let named = file.extension().is_some_and(|e| e == "json" || e == "png");
                named && fs::metadata(file).is_ok_and(|data| data.len() > 0)
            };
            if let Some(file) = files.find(finished) {
                let moved = into.join(file.file_name().unwrap());
                fs::rename(&file, &moved).unwrap();
                return moved;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "nothing was downloaded");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Browser {
    /// Ends the session; after a failure the driver may be gone.
    fn drop(&mut self) {
        let _ = minreq::delete(&self.session).with_timeout(TIMEOUT).send();
    }
}
