//! A real browser, driven as W3C's WebDriver has it: Chromium without a window, by its own driver
//! over plain HTTP.

use crate::http::{Client, Response};
use crate::{Address, tool};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Keys that have no character, as WebDriver names them.
pub mod key {
    /// Moves the focus on.
    pub const TAB: char = '\u{e004}';
    /// Presses the button that has the focus.
    pub const ENTER: char = '\u{e007}';
    /// Closes what is open.
    pub const ESCAPE: char = '\u{e00c}';
    /// To the last of something.
    pub const END: char = '\u{e010}';
    /// To the first of something.
    pub const HOME: char = '\u{e011}';
    /// To what is on the left.
    pub const LEFT: char = '\u{e012}';
    /// To what is on the right.
    pub const RIGHT: char = '\u{e014}';
}

/// A browser with one page.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    address: Address,
    session: String,
    profile: TempDir,
}

/// Starts a driver: its process and its port; `None` when it leaves without telling one.
fn drive(program: &Path, home: &Path) -> Option<(Child, u16)> {
    let mut driver = Command::new(program)
        .arg("--port=0")
        // What the browser itself writes, such as sockets and crash reports, goes where it is
        // cleaned up.
        .env("TMPDIR", home)
        .env("HOME", home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("chromedriver can be run");
    let mut lines = BufReader::new(driver.stdout.take().expect("it is piped")).lines();
    let port = lines.by_ref().map_while(Result::ok).find_map(|line| {
        let port = line.split_once("successfully on port ")?.1;
        port.trim_end_matches('.').parse::<u16>().ok()
    });
    // It must not block on unread output.
    std::thread::spawn(move || lines.count());
    if port.is_none() {
        let _ = driver.wait();
    }
    Some((driver, port?))
}

/// What an element is called by where elements are named in JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

impl Browser {
    /// Starts one whose page has this size; `None` when Chromium or its driver is missing.
    ///
    /// # Panics
    /// When they are there and do not start.
    pub fn start(width: u32, height: u32) -> Option<Self> {
        let binary = ["chromium", "chromium-browser", "google-chrome"]
            .into_iter()
            .find_map(tool)?;
        let profile = tempfile::tempdir().expect("a temporary directory");
        let chromedriver = tool("chromedriver")?;
        // It wants one port of both 127.0.0.1 and ::1, and leaves when the one that it was given is
        // taken at the other.
        let (driver, port) = (0..8)
            .find_map(|_| drive(&chromedriver, profile.path()))
            .expect("chromedriver tells its port, once in eight times");
        let address = format!("127.0.0.1:{port}");
        let address = address.parse().expect("an address");
        let mut browser = Self {
            driver,
            address,
            session: String::new(),
            profile,
        };
        let arguments = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-breakpad".to_owned(),
            "--no-first-run".to_owned(),
            format!(
                "--user-data-dir={}",
                browser.profile.path().join("profile").display()
            ),
            format!("--window-size={width},{height}"),
        ];
        let wanted = json!({
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments, "binary": binary },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let session = browser.ask(
            "POST",
            "/session",
            &json!({ "capabilities": { "alwaysMatch": wanted } }),
        );
        let id = session["sessionId"].as_str().expect("a session has a name");
        browser.session = format!("/session/{id}");
        browser.resize(width, height);
        Some(browser)
    }

    /// Gives the page another size, in CSS pixels.
    pub fn resize(&self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.develop("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Lets the page know what its reader prefers, as `prefers-color-scheme` and `dark`.
    pub fn prefer(&self, feature: &str, value: &str) {
        let features = json!({ "features": [{ "name": feature, "value": value }] });
        self.develop("Emulation.setEmulatedMedia", &features);
    }

    /// Does something that only Chromium's developer tools can.
    pub fn develop(&self, command: &str, parameters: &Value) -> Value {
        self.command(
            "/goog/cdp/execute",
            &json!({ "cmd": command, "params": parameters }),
        )
    }

    /// Opens a page and waits until it is loaded.
    pub fn open(&self, url: &str) {
        self.command("/url", &json!({ "url": url }));
    }

    /// Runs a function's body in the page, and tells what it returns.
    pub fn run(&self, body: &str) -> Value {
        self.command("/execute/sync", &json!({ "script": body, "args": [] }))
    }

    /// The text in the first element that a selector finds; empty when there is none or it is
    /// hidden.
    pub fn text(&self, selector: &str) -> String {
        let script = format!(
            "const node = document.querySelector({}); return node && node.innerText || ''",
            json!(selector)
        );
        self.run(&script).as_str().unwrap_or_default().to_owned()
    }

    /// How many elements a selector finds.
    ///
    /// # Panics
    /// When the page cannot be asked.
    pub fn count(&self, selector: &str) -> u64 {
        let script = format!(
            "return document.querySelectorAll({}).length",
            json!(selector)
        );
        self.run(&script).as_u64().expect("a number")
    }

    /// Presses and releases these keys, one after the other.
    pub fn press(&self, keys: &[char]) {
        let actions: Vec<Value> = keys
            .iter()
            .flat_map(|key| ["keyDown", "keyUp"].map(|what| json!({ "type": what, "value": key })))
            .collect();
        let actions =
            json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] });
        self.command("/actions", &actions);
    }

    /// What a screen reader is told of an element: its role and its name.
    ///
    /// # Panics
    /// When there is no such element.
    #[track_caller]
    pub fn accessible(&self, selector: &str) -> (String, String) {
        let found = self.command(
            "/element",
            &json!({ "using": "css selector", "value": selector }),
        );
        let element = found[ELEMENT]
            .as_str()
            .unwrap_or_else(|| panic!("no {selector}: {found}"));
        let of = |what: &str| {
            let path = format!("{}/element/{element}/{what}", self.session);
            self.ask("GET", &path, &Value::Null)
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        (of("computedrole"), of("computedlabel"))
    }

    /// What stands in the browser's console since this was asked last.
    pub fn console(&self) -> Vec<String> {
        let entries = self.command("/se/log", &json!({ "type": "browser" }));
        let entries = entries.as_array().cloned().unwrap_or_default();
        entries
            .iter()
            .map(|entry| format!("{}: {}", entry["level"], entry["message"]))
            .collect()
    }

    fn command(&self, path: &str, body: &Value) -> Value {
        self.ask("POST", &format!("{}{path}", self.session), body)
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.try_ask(method, path, body);
        let answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let value: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        assert_eq!(
            answer.status, 200,
            "{method} {path} {body}: {}",
            answer.body
        );
        value["value"].clone()
    }

    fn try_ask(&self, method: &str, path: &str, body: &Value) -> std::io::Result<Response> {
        let body = if method == "POST" {
            body.to_string()
        } else {
            String::new()
        };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {0}\r\nContent-Type: application/json\r\n\
             Content-Length: {1}\r\n\r\n",
            self.address,
            body.len()
        );
        let mut client = Client::connect(&self.address)?;
        // A browser on a loaded machine may take long for its first page.
        client.patience(Duration::from_secs(90))?;
        client.send((head + &body).as_bytes())?;
        client.receive()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self.try_ask("DELETE", &self.session, &Value::Null);
        }
        // What is left of the browser, too: it is in the driver's group.
        let group = i32::try_from(self.driver.id()).expect("a pid");
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        let _ = self.driver.wait();
    }
}
