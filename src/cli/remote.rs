//! Speaking with a live machine's control API, for the commands that look at one or turn it.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::output;
use crate::error::{Error, Result};

type Response = ureq::http::Response<ureq::Body>;

/// Which machine.
#[derive(Clone, Debug, clap::Args)]
pub struct Remote {
    /// The live machine
    #[arg(
        long,
        value_name = "URL",
        env = "SUPERNODE_URL",
        default_value = "http://127.0.0.1:8384"
    )]
    pub url: String,

    /// Its token, if it has one
    #[arg(
        long,
        value_name = "TOKEN",
        env = "SUPERNODE_TOKEN",
        hide_env_values = true
    )]
    pub token: Option<String>,
}

/// A machine under full load answers within milliseconds; one that is stuck is said to be.
const WAIT: Duration = Duration::from_secs(15);

impl Remote {
    pub fn get(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, None)
    }

    /// Asks, and gives the answer's JSON.
    ///
    /// # Errors
    /// No machine there, or what it says is wrong with what was asked.
    pub fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let mut response = self.send(method, path, body, Some(WAIT))?;
        let text = response.body_mut().read_to_string();
        let text = text.map_err(|e| self.unreachable(&e))?;
        self.judged(response.status(), &text)?;
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Writes what is there to a file, or to standard output for "-"; its bytes.
    ///
    /// # Errors
    /// As [`Remote::ask`], or a file that cannot be written.
    pub fn download(&self, path: &str, file: &Path) -> Result<u64> {
        let mut response = self.send("GET", path, None, None)?;
        if !response.status().is_success() {
            let text = response.body_mut().read_to_string();
            let text = text.map_err(|e| self.unreachable(&e))?;
            self.judged(response.status(), &text)?;
        }
        let mut body = response.body_mut().as_reader();
        if output::is_stdout(file) {
            return Ok(std::io::copy(&mut body, &mut std::io::stdout().lock())?);
        }
        let written = File::create(file).and_then(|mut f| std::io::copy(&mut body, &mut f));
        written.map_err(|e| Error::failed(format!("cannot keep {path} as {}: {e}", file.display())))
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        wait: Option<Duration>,
    ) -> Result<Response> {
        let base = self.base();
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(wait)
            .timeout_recv_response(Some(WAIT))
            .http_status_as_error(false)
            .build()
            .into();
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{base}{path}"));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let content = body.map_or(String::new(), |b| b.to_string());
        let request = request
            .header("Content-Type", "application/json")
            .body(content)
            .map_err(|e| Error::user(format!("--url {base}: {e}")))?;
        agent.run(request).map_err(|e| self.unreachable(&e))
    }

    fn base(&self) -> &str {
        self.url.trim_end_matches('/')
    }

    fn unreachable(&self, e: &ureq::Error) -> Error {
        Error::failed(format!(
            "no live machine answers at {} ({e}); `supernode up` starts one, --url names another",
            self.base()
        ))
    }

    /// What a status that is no success means; `text` is the body that came with it.
    fn judged(&self, status: ureq::http::StatusCode, text: &str) -> Result<()> {
        if status.is_success() {
            return Ok(());
        }
        let value: Value = serde_json::from_str(text).unwrap_or(Value::Null);
        let said = value["error"]["message"].as_str().unwrap_or("");
        let text = format!("{} says {}: {said}", self.base(), status.as_u16());
        Err(if status.is_client_error() {
            Error::user(text)
        } else {
            Error::failed(text)
        })
    }
}
