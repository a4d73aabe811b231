//! The page at `/` in a headless Chromium, driven over a pipe: what it shows, a fault injected by clicking a part, and
//! that it asks nobody but its own machine. Without a Chromium this says so and passes.
#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use common::live::Up;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The browser: SUPERNODE_CHROMIUM, or what Debian and others call it.
fn chromium() -> Option<String> {
    let names = match std::env::var("SUPERNODE_CHROMIUM") {
        Ok(name) => vec![name],
        Err(_) => ["chromium", "chromium-browser", "google-chrome"]
            .map(String::from)
            .to_vec(),
    };
    names.into_iter().find(|name| {
        let mut version = Command::new(name);
        version.arg("--version").stdout(Stdio::null());
        version
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    })
}

/// A browser that is told what to do in DevTools' protocol: messages that end in a zero byte, over its
/// descriptors 3 and 4.
struct Browser {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Option<String>,
    sent: u64,
    /// What it has told without being asked.
    events: Vec<Value>,
    _profile: TempDir,
}

impl Browser {
    fn new(name: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let flags = format!(
            "--headless --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run --window-size=1400,1000 \
             --disable-background-networking --disable-component-update --disable-sync --disable-extensions \
             --host-resolver-rules='MAP * ~NOTFOUND, EXCLUDE 127.0.0.1' --user-data-dir='{}'",
            profile.path().display()
        );
        let mut child = Command::new("sh")
            .args([
                "-c",
                &format!("exec {name} {flags} 3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null"),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut browser = Self {
            child,
            to,
            from: BufReader::new(from),
            session: None,
            sent: 0,
            events: Vec::new(),
            _profile: profile,
        };
        let target = browser.tell("Target.createTarget", json!({"url": "about:blank"}));
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.tell("Target.attachToTarget", target);
        browser.session = attached["sessionId"].as_str().map(String::from);
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.tell(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Sends a command and waits for its result.
    fn tell(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({"id": self.sent, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        write!(self.to, "{message}\0").unwrap();
        self.to.flush().unwrap();
        loop {
            let mut bytes = Vec::new();
            self.from.read_until(0, &mut bytes).unwrap();
            assert!(bytes.pop().is_some(), "the browser has gone at {method}");
            let answer: Value = serde_json::from_slice(&bytes).unwrap();
            if answer["id"] != self.sent {
                self.events.push(answer);
                continue;
            }
            assert!(answer.get("error").is_none(), "{method}: {answer}");
            return answer["result"].clone();
        }
    }

    /// The value of an expression in the page.
    fn value(&mut self, expression: &str) -> Value {
        let ask = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.tell("Runtime.evaluate", ask);
        assert!(
            result.get("exceptionDetails").is_none(),
            "{expression}: {result}"
        );
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    fn wait(&mut self, expression: &str) {
        let began = Instant::now();
        while self.value(expression) != true {
            if began.elapsed() > Duration::from_secs(30) {
                let shown = self.value("document.body ? document.body.innerText : ''");
                panic!("{expression} never came true: {shown}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn click(&mut self, x: f64, y: f64) {
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            let button = if kind == "mouseMoved" { "none" } else { "left" };
            let event = json!({"type": kind, "x": x, "y": y, "button": button, "clickCount": 1});
            self.tell("Input.dispatchMouseEvent", event);
        }
    }

    /// Clicks the middle of an element.
    fn click_on(&mut self, selector: &str) {
        let at = self.value(&format!(
            "(() => {{ const e = document.querySelector({selector:?}); e.scrollIntoView({{block: 'center'}}); \
             const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()"
        ));
        self.click(at[0].as_f64().unwrap(), at[1].as_f64().unwrap());
    }

    fn picture(&mut self) -> Vec<u8> {
        let picture = self.tell("Page.captureScreenshot", json!({"format": "png"}));
        let data = picture["data"].as_str().unwrap();
        base64::engine::general_purpose::STANDARD
            .decode(data)
            .unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_page_shows_the_machine_and_breaks_the_part_that_is_clicked() {
    let Some(name) = chromium() else {
        println!("skipped: there is no chromium (SUPERNODE_CHROMIUM names one)");
        return;
    };
    let up = Up::new(&[
        "--load",
        "--set",
        "workload.kind=closed",
        "--set",
        "workload.concurrency_per_npu=4",
        "--set",
        "workload.prompt_tokens=700",
        "--set",
        "workload.output_tokens=200",
    ]);
    let mut page = Browser::new(&name);
    page.tell(
        "Page.navigate",
        json!({"url": format!("http://{}/", up.address)}),
    );
    page.wait("document.body && document.body.dataset.ready === '1'");

    // Curves and figures of a machine that works, and its slowest requests.
    page.wait("Number(document.querySelector('#output').textContent.replace(/,/g, '')) > 0");
    page.wait("/ms|s$/.test(document.querySelector('#tpot').textContent)");
    page.wait("document.querySelectorAll('#slow tr').length > 3");
    let slow = page.value("document.querySelector('#slow tr:nth-child(2)').innerText");
    assert!(slow.as_str().unwrap().contains("/cpu"), "{slow}");
    for canvas in [
        "map",
        "output-curve",
        "prompt-curve",
        "tpot-curve",
        "ttft-curve",
    ] {
        // More than one colour is drawn.
        page.wait(&format!(
            "(() => {{ const c = document.getElementById('{canvas}'); \
             const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, s = new Set(); \
             for (let i = 0; i < d.length; i += 4) if (d[i + 3]) s.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]); \
             return s.size > 3; }})()"
        ));
    }

    // The die node2/npu5/die1: where the page says its cells are.
    let at = page.value(
        "(() => { const m = document.getElementById('map'); m.scrollIntoView(); const b = m.getBoundingClientRect(), l = layout; \
         const n = 2, p = 5, d = 1; \
         return [b.x + Math.floor(n / ROWS) * (l.nodeW + l.gap) + (d + .5) * l.cell, \
                 b.y + (n % ROWS) * (l.nodeH + l.gap + 12) + 12 + (p + .5) * l.cell]; })()",
    );
    page.click(at[0].as_f64().unwrap(), at[1].as_f64().unwrap());
    page.wait("document.getElementById('address').value === 'node2/npu5/die1/ub*'");
    let shown = page.value("document.getElementById('where').textContent");
    assert!(
        shown.as_str().unwrap().starts_with("node2/npu5/die1: "),
        "{shown}"
    );
    page.click_on("#inject");
    page.wait(
        "document.querySelector('#faults').innerText.includes('slow node2/npu5/die1/ub* x0.3')",
    );
    let faults = up.ask("GET", "/api/faults", "").json();
    assert_eq!(faults["faults"].as_array().unwrap().len(), 1, "{faults}");
    assert_eq!(
        faults["faults"][0]["fault"],
        "slow node2/npu5/die1/ub* x0.3"
    );
    assert_eq!(faults["faults"][0]["state"], "in force");
    let picture = page.picture();
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 20_000);
    if let Ok(path) = std::env::var("SUPERNODE_SCREENSHOT") {
        std::fs::write(path, picture).unwrap();
    }
    page.click_on("#faults button");
    page.wait("document.querySelector('#faults').innerText.includes('over')");

    // What the machine says is wrong stands on the page.
    page.value("document.getElementById('address').value = 'node99'; null");
    page.click_on("#inject");
    page.wait("document.getElementById('said').textContent.includes('node99')");

    // It asked nobody else, and nothing broke in it but the request that was to.
    let own = format!("http://{}/", up.address);
    for event in &page.events {
        let url = event["params"]["request"]["url"].as_str();
        if let Some(url) = url.filter(|_| event["method"] == "Network.requestWillBeSent") {
            assert!(url.starts_with(&own) || url.starts_with("data:"), "{url}");
        }
        assert_ne!(event["method"], "Runtime.exceptionThrown", "{event}");
        let entry = &event["params"]["entry"];
        if event["method"] == "Log.entryAdded" && entry["level"] == "error" {
            assert_eq!(entry["source"], "network", "{entry}");
            assert!(entry["text"].as_str().unwrap().contains("400"), "{entry}");
        }
    }
}
