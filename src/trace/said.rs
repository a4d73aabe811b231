//! What people say of a trace, on the command line and over the API: shares and sizes.

/// A share from 0 to 1, such as 1% or 0.01.
pub fn share(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%');
    let scale = if number.len() < text.len() { 0.01 } else { 1.0 };
    match number.trim().parse::<f64>() {
        Ok(x) if (0.0..=1.0).contains(&(x * scale)) => Ok(x * scale),
        _ => Err("expected a share from 0% to 100%, such as 1%".into()),
    }
}

/// A size in bytes, such as 500MB.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "KB" | "K" => 1e3,
        "MB" | "M" => 1e6,
        "GB" | "G" => 1e9,
        "TB" | "T" => 1e12,
        _ => return Err("expected a size such as 500MB or 2GB".into()),
    };
    match digits.trim().parse::<f64>() {
        Ok(x) if x * unit >= 1.0 && x * unit < 1e18 => Ok((x * unit) as u64),
        _ => Err("expected a size such as 500MB or 2GB".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_sizes_are_read_as_people_write_them() {
        assert_eq!(
            (share("1%"), share("0.5"), share("100%")),
            (Ok(0.01), Ok(0.5), Ok(1.0))
        );
        assert!(share("200%").is_err() && share("x").is_err() && share("-1%").is_err());
        assert_eq!(
            (size("64MB"), size("1.5g"), size("10")),
            (Ok(64_000_000), Ok(1_500_000_000), Ok(10))
        );
        assert!(size("many").is_err() && size("0").is_err() && size("5 parsecs").is_err());
    }
}
