//! The HTTP server: binds its port first, so that a second machine on it says so at once; guards it; and serves on an
//! actix system of its own.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

use actix_web::body::{BoxBody, EitherBody, MessageBody};
use actix_web::dev::{ServerHandle, ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header;
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, HttpServer, web};

use super::control::Desk;
use super::gateway::Gateway;
use super::openai::ApiError;
use super::{api, control, faults, page, traces};
use crate::error::{Error, Result};

/// Connections held at once: each open stream is one.
const CONNECTIONS_MOST: usize = 20_000;
const BACKLOG: u32 = 4_096;
/// Open answers get so long to end once the machine has.
const SHUTDOWN_S: u64 = 5;

/// A port that is ours.
pub struct Bound {
    listener: TcpListener,
    pub address: SocketAddr,
    token: Option<Arc<str>>,
}

/// A running server.
pub struct Server {
    handle: ServerHandle,
    thread: std::thread::JoinHandle<std::io::Result<()>>,
}

impl Bound {
    /// # Errors
    /// An address that is taken, or reachable from elsewhere without a token to guard it.
    pub fn new(address: SocketAddr, token: Option<&str>) -> Result<Self> {
        if !is_loopback(address.ip()) && token.is_none_or(str::is_empty) {
            return Err(Error::user(format!(
                "--listen {address}: others can reach this address, and could break the machine: give --token (or SUPERNODE_TOKEN), or listen on 127.0.0.1"
            )));
        }
        let listener = TcpListener::bind(address).map_err(|e| match e.kind() {
            std::io::ErrorKind::AddrInUse => Error::user(format!(
                "--listen {address}: the port is taken, perhaps by another supernode; choose another with --listen {}:PORT",
                address.ip()
            )),
            _ => Error::user(format!("--listen {address}: {e}")),
        })?;
        let address = listener
            .local_addr()
            .map_err(|e| Error::failed(format!("--listen {address}: {e}")))?;
        Ok(Self {
            listener,
            address,
            token: token.map(Into::into),
        })
    }

    /// Serves on so many threads until stopped.
    pub fn serve(self, threads: usize, gateway: Gateway, desk: Desk) -> Result<Server> {
        let Self {
            listener, token, ..
        } = self;
        let (started, starting) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("http".into())
            .spawn(move || {
                let desk = web::Data::new(desk);
                actix_rt::System::new().block_on(async move {
                    let server = HttpServer::new(move || {
                        let token = token.clone();
                        App::new()
                            .app_data(web::Data::new(gateway.on_this_thread()))
                            .app_data(desk.clone())
                            .wrap(from_fn(move |request, next| {
                                guard(token.clone(), request, next)
                            }))
                            .configure(api::routes)
                            .configure(control::routes)
                            .configure(faults::routes)
                            .configure(traces::routes)
                            .configure(page::routes)
                            .default_service(web::to(nowhere))
                    })
                    .workers(threads)
                    .backlog(BACKLOG)
                    .max_connections(CONNECTIONS_MOST / threads)
                    // A token is a small write that must not wait for the last one's acknowledgement.
                    .tcp_nodelay(true)
                    .h1_allow_half_closed(false)
                    .shutdown_timeout(SHUTDOWN_S)
                    .disable_signals()
                    .listen(listener);
                    match server {
                        Ok(server) => {
                            let server = server.run();
                            let _ = started.send(Ok(server.handle()));
                            server.await
                        }
                        Err(e) => {
                            let _ = started.send(Err(e));
                            Ok(())
                        }
                    }
                })
            })
            .map_err(|e| Error::failed(format!("cannot start the server's thread: {e}")))?;
        match starting.recv() {
            Ok(Ok(handle)) => Ok(Server { handle, thread }),
            Ok(Err(e)) => Err(Error::failed(format!("cannot serve: {e}"))),
            Err(_) => Err(Error::failed("the server ended at its start")),
        }
    }
}

impl Server {
    /// Lets open answers end, for a while, and stops.
    pub fn stop(self) {
        let handle = self.handle;
        // The future does its work whether or not it is waited for; the thread's end is.
        drop(handle.stop(true));
        let _ = self.thread.join();
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    }
}

async fn nowhere(request: actix_web::HttpRequest) -> actix_web::HttpResponse {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "invalid_request_error",
        format!(
            "{} {}: there is nothing here",
            request.method(),
            request.path()
        ),
    )
    .response()
}

/// With a token: who does not have it is sent away, except from the page (which holds no data) and from `/health`.
/// Without one, only names of this computer are answered to, so that no web page elsewhere gets in by a name of its own.
async fn guard(
    token: Option<Arc<str>>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> std::result::Result<ServiceResponse<EitherBody<BoxBody>>, actix_web::Error> {
    let refusal = match &token {
        Some(token) => {
            let open = matches!(request.path(), "/" | "/health" | "/ping");
            let given = request.headers().get(header::AUTHORIZATION);
            let given = given.and_then(|v| v.to_str().ok()).unwrap_or("");
            let given = given.strip_prefix("Bearer ").unwrap_or("");
            (!open && !same(given, token)).then(|| ApiError {
                code: Some("invalid_api_key"),
                ..ApiError::new(
                    StatusCode::UNAUTHORIZED,
                    "invalid_request_error",
                    "this machine asks for its token: Authorization: Bearer TOKEN",
                )
            })
        }
        None => (!is_local_name(request.connection_info().host())).then(|| {
            ApiError::new(
                StatusCode::FORBIDDEN,
                "invalid_request_error",
                "without a token this machine answers to 127.0.0.1, [::1] and localhost only",
            )
        }),
    };
    if let Some(refusal) = refusal {
        let response = request.into_response(refusal.response());
        return Ok(response.map_into_boxed_body().map_into_right_body());
    }
    let response = next.call(request).await?;
    Ok(response.map_into_boxed_body().map_into_left_body())
}

/// Compares in a time that does not tell where they differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

fn is_local_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(is_loopback)
}

#[cfg(test)]
mod tests {
    use super::is_local_name;

    #[test]
    fn only_names_of_this_computer_are_local() {
        for host in [
            "localhost:8384",
            "127.0.0.1",
            "127.0.0.1:80",
            "[::1]:8384",
            "LOCALHOST",
        ] {
            assert!(is_local_name(host), "{host}");
        }
        for host in [
            "example.org",
            "127.0.0.1.example.org:80",
            "10.0.0.1:8384",
            "",
        ] {
            assert!(!is_local_name(host), "{host}");
        }
    }
}
