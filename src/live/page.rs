//! The page at `/`: one file, nothing from elsewhere.

use actix_web::{HttpResponse, web};

const PAGE: &str = include_str!("page.html");

pub fn routes(config: &mut web::ServiceConfig) {
    config.route("/", web::get().to(page));
}

async fn page() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header(("Cache-Control", "no-cache"))
        .insert_header((
            "Content-Security-Policy",
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'",
        ))
        .body(PAGE)
}
