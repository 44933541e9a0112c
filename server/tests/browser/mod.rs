//! Chromium, driven by its DevTools protocol: a page of its own, what it asks for, and what it complains of.
//! Source: chromedevtools.github.io/devtools-protocol (domains Target, Page, Runtime, Network, Log, Input, Emulation).

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// What a page gets to show something.
const SHOWN_WITHIN_MS: u64 = 30_000;
/// Screenshots are long messages.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A browser with one page. It ends with this.
pub struct Page {
    socket: WebSocketStream<TcpStream>,
    session: String,
    last_id: u64,
    /// URLs that the page asked for.
    pub asked: Vec<String>,
    /// Errors in its console, exceptions, dialogs, refused content.
    pub complaints: Vec<String>,
    is_loaded: bool,
    process: Child,
    _profile: TempDir,
}

impl Drop for Page {
    fn drop(&mut self) {
        // It has ended already when it crashed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start(profile: &Path) -> (Child, String) {
    let program = std::env::var("PINTLE_TEST_CHROMIUM").unwrap_or_else(|_| "chromium".into());
    let mut process = Command::new(&program)
        // The tests may run as root, for whom Chromium has no sandbox; the page is Pintle's own.
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--force-color-profile=srgb"])
        .args(["--hide-scrollbars", "--remote-debugging-port=0", "--lang=en", "about:blank"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}: script/setup --test installs it"));
    let stderr = process.stderr.take().expect("it is piped");
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    let url = lines.find_map(|line| line.strip_prefix("DevTools listening on ").map(str::to_string));
    let url = url.expect("Chromium says where its tools are");
    // It goes on to complain of what a headless machine lacks; somebody has to take that.
    std::thread::spawn(move || lines.for_each(drop));
    (process, url)
}

impl Page {
    pub async fn open(url: &str) -> Page {
        let profile = TempDir::new().unwrap();
        let (process, tools) = start(profile.path());
        let address = tools.strip_prefix("ws://").unwrap().split('/').next().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let (socket, _) = client_async_with_config(tools.as_str(), stream, Some(config)).await.unwrap();
        let mut page = Page {
            socket,
            session: String::new(),
            last_id: 0,
            asked: Vec::new(),
            complaints: Vec::new(),
            is_loaded: false,
            process,
            _profile: profile,
        };
        let target = page.command("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = page.command("Target.attachToTarget", attach).await;
        page.session = attached["sessionId"].as_str().unwrap().into();
        for domain in ["Page", "Runtime", "Network", "Log"] {
            page.command(&format!("{domain}.enable"), json!({})).await;
        }
        page.size(1240, 900).await;
        page.go(url).await;
        page
    }

    /// Loads a URL, whole.
    pub async fn go(&mut self, url: &str) {
        self.is_loaded = false;
        self.command("Page.navigate", json!({ "url": url })).await;
        while !self.is_loaded {
            self.hear().await;
        }
    }

    pub async fn size(&mut self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700 });
        self.command("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    pub async fn color_scheme(&mut self, scheme: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.command("Emulation.setEmulatedMedia", json!({ "features": [feature] })).await;
    }

    /// What an expression is, or a promise becomes.
    pub async fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.command("Runtime.evaluate", parameters).await;
        if let Some(exception) = answer.get("exceptionDetails") {
            panic!("{expression}: {}", exception["exception"]["description"]);
        }
        answer["result"]["value"].clone()
    }

    /// Returns when the expression is true; it is looked at whenever the page changes.
    pub async fn wait_for(&mut self, expression: &str) {
        let promise = format!(
            "new Promise((done, fail) => {{
               const changes = new MutationObserver(look);
               const late = () => fail(new Error('not within {SHOWN_WITHIN_MS} ms, but: ' + document.body.innerText));
               const timer = setTimeout(late, {SHOWN_WITHIN_MS});
               function look() {{
                 if (!({expression})) return;
                 changes.disconnect();
                 clearTimeout(timer);
                 done();
               }}
               changes.observe(document, {{ subtree: true, childList: true, attributes: true, characterData: true }});
               look();
             }})"
        );
        self.evaluate(&promise).await;
    }

    /// Waits for a text to be seen.
    pub async fn wait_for_text(&mut self, text: &str) {
        self.wait_for(&format!("document.body.innerText.includes({})", json!(text))).await;
    }

    /// Presses a key: `Tab`, `Enter`, `Space`.
    pub async fn press(&mut self, key: &str) {
        let (key, code, number, text) = match key {
            "Tab" => ("Tab", "Tab", 9, ""),
            "Enter" => ("Enter", "Enter", 13, "\r"),
            "Space" => (" ", "Space", 32, " "),
            other => panic!("{other}: no such key here"),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "code": code, "windowsVirtualKeyCode": number });
            if kind == "keyDown" {
                event["text"] = text.into();
            }
            self.command("Input.dispatchKeyEvent", event).await;
        }
    }

    /// Types into what has the focus.
    pub async fn write(&mut self, text: &str) {
        self.command("Input.insertText", json!({ "text": text })).await;
    }

    /// The page as a PNG, of the window's width and so high.
    pub async fn screenshot(&mut self, file: &Path) {
        let answer = self.command("Page.captureScreenshot", json!({ "format": "png" })).await;
        std::fs::write(file, BASE64.decode(answer["data"].as_str().unwrap()).unwrap()).unwrap();
    }

    async fn command(&mut self, method: &str, parameters: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        self.socket.send(Message::text(message.to_string())).await.unwrap();
        loop {
            let heard = self.hear().await;
            if heard["id"] == id {
                assert!(heard.get("error").is_none(), "{method}: {heard}");
                return heard["result"].clone();
            }
        }
    }

    /// The next message; what it says of the page is kept.
    async fn hear(&mut self) -> Value {
        let heard = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("Chromium has something to say");
        let message = heard.expect("Chromium runs").unwrap();
        let message: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        let parameters = &message["params"];
        match message["method"].as_str().unwrap_or_default() {
            "Page.loadEventFired" => self.is_loaded = true,
            "Network.requestWillBeSent" => self.asked.push(parameters["request"]["url"].as_str().unwrap().into()),
            "Runtime.exceptionThrown" => self.complaints.push(parameters["exceptionDetails"].to_string()),
            "Runtime.consoleAPICalled"
                if ["error", "warning", "assert"].contains(&parameters["type"].as_str().unwrap()) =>
            {
                self.complaints.push(parameters["args"].to_string());
            }
            "Log.entryAdded" if parameters["entry"]["level"] != "verbose" => {
                self.complaints.push(parameters["entry"].to_string());
            }
            "Page.javascriptDialogOpening" => self.complaints.push(format!("a dialog: {}", parameters["message"])),
            _ => {}
        }
        message
    }
}
