//! CSV traces: Azure LLM inference (`TIMESTAMP,ContextTokens,GeneratedTokens`, Patel et al., ISCA 2024) and
//! BurstGPT (`Timestamp`, …, `Request tokens`, `Response tokens`, …, Wang et al., 2024). Columns are found by
//! their name, so that editions with more of them read as well.

use time::{Date, Month, UtcDateTime};

use super::lines::{Lines, excerpt};
use super::{Row, Trace};
use crate::error::{Error, Result};
use crate::scenario::Format;

const AZURE: [&str; 3] = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"];
const BURST_GPT: [&str; 3] = ["Timestamp", "Request tokens", "Response tokens"];

/// The format that a CSV header belongs to.
pub fn format_of_header(header: &str) -> Option<Format> {
    let has = |names: &[&str; 3]| {
        names
            .iter()
            .all(|n| header.split(',').any(|h| unquoted(h) == *n))
    };
    if has(&AZURE) {
        Some(Format::Azure)
    } else if has(&BURST_GPT) {
        Some(Format::BurstGpt)
    } else {
        None
    }
}

pub fn read(lines: &mut Lines, format: Format) -> Result<Trace> {
    let names = if format == Format::Azure {
        &AZURE
    } else {
        &BURST_GPT
    };
    let mut trace = Trace::new(lines.name(), format);
    let header = lines.next()?.unwrap_or_default().to_string();
    let find = |name: &str| header.split(',').position(|h| unquoted(h) == name);
    let columns = names.map(find);
    let [Some(at), Some(prompt), Some(output)] = columns else {
        let missing = names
            .iter()
            .zip(&columns)
            .find(|(_, c)| c.is_none())
            .map_or("", |(n, _)| n);
        return Err(lines.wrong(
            Some(1),
            &format!(
                "the header has no column {missing}: found {}",
                excerpt(&header)
            ),
        ));
    };
    let width = header.split(',').count();
    while let Some(line) = lines.next()? {
        let row = (|| {
            let count = line.split(',').count();
            if count != width {
                return Err((
                    line,
                    format!("found {count} fields, expected {width} as in the header"),
                ));
            }
            let field = |column: usize| line.split(',').nth(column).unwrap_or("");
            let at_s = if format == Format::Azure {
                wall_time_s(field(at))
            } else {
                seconds(field(at))
            };
            let time = if format == Format::Azure {
                "a time such as 2023-11-16 18:15:46.6805900"
            } else {
                "seconds, 0 or more"
            };
            Ok(Row {
                at_s: at_s.ok_or_else(|| {
                    (
                        field(at),
                        format!(
                            "{}: found {}, expected {time}",
                            names[0],
                            excerpt(field(at))
                        ),
                    )
                })?,
                prompt_tokens: tokens(field(prompt), names[1])?,
                output_tokens: tokens(field(output), names[2])?,
                ids: None,
            })
        })();
        match row {
            Ok(row) => trace.push(row),
            Err((field, why)) => {
                let column = (field.as_ptr() as usize).saturating_sub(line.as_ptr() as usize) + 1;
                return Err(wrong(lines, column, &why));
            }
        }
    }
    Ok(trace)
}

fn wrong(lines: &Lines, column: usize, why: &str) -> Error {
    lines.wrong(Some(column), why)
}

fn unquoted(field: &str) -> &str {
    field.trim().trim_matches('"')
}

fn tokens<'a>(field: &'a str, name: &str) -> std::result::Result<u32, (&'a str, String)> {
    unquoted(field).parse().map_err(|_| {
        (
            field,
            format!(
                "{name}: found {}, expected a whole number of tokens",
                excerpt(field)
            ),
        )
    })
}

fn seconds(field: &str) -> Option<f64> {
    unquoted(field)
        .parse()
        .ok()
        .filter(|s: &f64| s.is_finite() && *s >= 0.0)
}

/// Seconds since 1970 of "2023-11-16 18:15:46.6805900" (also with T, and with a zone, which is ignored
/// because only differences count).
fn wall_time_s(field: &str) -> Option<f64> {
    let field = unquoted(field);
    let (date, time) = field.split_at_checked(10)?;
    let time_of_day = time.strip_prefix([' ', 'T'])?.split(['Z', '+']).next()?;
    let mut parts = date.split('-');
    let year: i32 = parts.next()?.parse().ok()?;
    let month: u8 = parts.next()?.parse().ok()?;
    let day: u8 = parts.next()?.parse().ok()?;
    let mut clock = time_of_day.split(':');
    let hour: u32 = clock.next()?.parse().ok()?;
    let minute: u32 = clock.next()?.parse().ok()?;
    let second: f64 = clock.next()?.parse().ok()?;
    let sane = hour < 24 && minute < 60 && (0.0..61.0).contains(&second);
    if !sane || parts.next().is_some() || clock.next().is_some() {
        return None;
    }
    let date = Date::from_calendar_date(year, Month::try_from(month).ok()?, day).ok()?;
    let days = date.to_julian_day() - UtcDateTime::UNIX_EPOCH.date().to_julian_day();
    Some(f64::from(days) * 86_400.0 + f64::from(hour * 3_600 + minute * 60) + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_times_differ_by_the_seconds_between_them() {
        assert_eq!(wall_time_s("1970-01-01 00:00:00"), Some(0.0));
        assert_eq!(wall_time_s("2000-03-01T00:00:00Z"), Some(951_868_800.0));
        let (a, b) = (
            wall_time_s("2024-02-28 23:59:59.5").unwrap(),
            wall_time_s("2024-03-01 00:00:00").unwrap(),
        );
        assert!((b - a - 86_400.5).abs() < 1e-6);
        for wrong in [
            "",
            "yesterday",
            "2023-13-01 00:00:00",
            "2023-02-31 00:00:00",
            "2023-02-29 00:00:00",
            "2023-11-16",
            "2023-11-16 25:00:00",
            "2023-11-16 18:15",
        ] {
            assert_eq!(wall_time_s(wrong), None, "{wrong}");
        }
    }
}
