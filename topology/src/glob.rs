//! Patterns over address segments: `*` for any part of a segment, `{1,4}` and `{0..7}` for alternatives, `**` for any
//! number of segments. Knows nothing of machines; names come in as strings.

/// Alternatives that one segment may unfold to; more than anyone types, few enough to match quickly.
const ALTERNATIVES_MAX: usize = 1_024;

/// One segment of a pattern.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Segment {
    /// A name without wildcards.
    Plain(String),
    /// `*`: every name.
    Any,
    /// `**`: any number of segments, none included.
    Deep,
    /// Any of several token sequences; `text` is what was typed.
    Pattern {
        text: String,
        alternatives: Vec<Vec<Token>>,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Token {
    Text(String),
    Star,
    /// A number between these, both included, written without leading zeros.
    Range(u32, u32),
}

/// Whether a text has anything that makes it a pattern.
pub(crate) fn is_pattern(text: &str) -> bool {
    text == "all" || text.contains(['*', '{', '}'])
}

/// The pattern for all names of one kind.
pub(crate) fn all_of(name: &str, numbered: bool) -> Segment {
    if !numbered {
        return Segment::Plain(name.to_owned());
    }
    Segment::Pattern {
        text: format!("{name}*"),
        alternatives: vec![vec![Token::Text(name.to_owned()), Token::Star]],
    }
}

/// Parses a whole address or pattern. Errors say what is wrong with it, without repeating it.
pub(crate) fn parse(text: &str) -> Result<Vec<Segment>, String> {
    if text.trim().is_empty() {
        return Err("an address is wanted, such as node0/npu0/die0".to_owned());
    }
    if text.contains(char::is_control) {
        return Err("an address is one line without control characters".to_owned());
    }
    if text == "all" {
        return Ok(vec![Segment::Deep]);
    }
    let mut segments = Vec::new();
    for segment in text.split('/') {
        let segment = parse_segment(segment)?;
        // `**/**` means no more than `**`.
        if segment != Segment::Deep || segments.last() != Some(&Segment::Deep) {
            segments.push(segment);
        }
    }
    Ok(segments)
}

fn parse_segment(text: &str) -> Result<Segment, String> {
    match text {
        "" => {
            return Err(
                "a segment is empty: use one `/` between segments, and none at the ends".to_owned(),
            );
        }
        "*" => return Ok(Segment::Any),
        "**" => return Ok(Segment::Deep),
        _ if !is_pattern(text) => return Ok(Segment::Plain(text.to_owned())),
        _ if text.contains("**") => {
            return Err(format!(
                "`**` in `{text}`: it stands for whole segments, as in node0/**; use `*` inside one"
            ));
        }
        _ => {}
    }
    let mut alternatives = vec![Vec::new()];
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let options: Vec<Token>;
        match first {
            '*' => {
                options = vec![Token::Star];
                rest = &rest[1..];
            }
            '{' => {
                let end = rest.find('}').ok_or_else(|| {
                    format!("`{{` in `{text}` is not closed before the end of the segment: write {{1,4}} or {{0..7}}")
                })?;
                options = parse_braces(&rest[1..end], text)?;
                rest = &rest[end + 1..];
            }
            '}' => {
                return Err(format!(
                    "`}}` in `{text}` closes nothing: write {{1,4}} or {{0..7}}"
                ));
            }
            _ => {
                let end = rest.find(['*', '{', '}']).unwrap_or(rest.len());
                options = vec![Token::Text(rest[..end].to_owned())];
                rest = &rest[end..];
            }
        }
        if alternatives.len() * options.len() > ALTERNATIVES_MAX {
            return Err(format!(
                "`{text}` has more than {ALTERNATIVES_MAX} alternatives: use `*` or a range {{0..7}}"
            ));
        }
        alternatives = alternatives
            .iter()
            .flat_map(|start: &Vec<Token>| {
                options
                    .iter()
                    .map(move |option| start.iter().chain([option]).cloned().collect())
            })
            .collect();
    }
    Ok(Segment::Pattern {
        text: text.to_owned(),
        alternatives,
    })
}

fn parse_braces(inside: &str, segment: &str) -> Result<Vec<Token>, String> {
    let wrong = |why: String| format!("`{{{inside}}}` in `{segment}`: {why}");
    inside
        .split(',')
        .map(|item| {
            if let Some((low, high)) = item.split_once("..") {
                let number = |text: &str| {
                    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                    let parsed = text.parse::<u32>().ok().filter(|_| digits);
                    parsed.ok_or_else(|| {
                        wrong(format!("`{text}` is not a whole number: write {{0..7}}"))
                    })
                };
                let (low, high) = (number(low)?, number(high)?);
                if low > high {
                    return Err(wrong(format!(
                        "the range runs backwards: write {{{high}..{low}}}"
                    )));
                }
                return Ok(Token::Range(low, high));
            }
            if item.is_empty() || item.contains(['{', '*']) {
                return Err(wrong(
                    "each alternative is a plain text or a range: write {1,4} or {0..7}".to_owned(),
                ));
            }
            Ok(Token::Text(item.to_owned()))
        })
        .collect()
}

impl Segment {
    /// What was typed.
    pub fn text(&self) -> &str {
        match self {
            Segment::Plain(text) | Segment::Pattern { text, .. } => text,
            Segment::Any => "*",
            Segment::Deep => "**",
        }
    }

    /// The kind of name that this is about: the letters it begins with, or `l1.`, `l2.`.
    pub fn kind(&self) -> &str {
        let text = self.text();
        let text = &text[..text.find(['*', '{']).unwrap_or(text.len())];
        match text.find('.') {
            Some(dot) => &text[..=dot],
            None => text.trim_end_matches(|c: char| c.is_ascii_digit()),
        }
    }

    /// Whether a name matches; `**` is the caller's to unfold, and matches any one name here.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Segment::Plain(text) => text == name,
            Segment::Any | Segment::Deep => true,
            Segment::Pattern { alternatives, .. } => {
                alternatives.iter().any(|tokens| matches(tokens, name))
            }
        }
    }
}

/// Backtracks over the few characters that names have.
fn matches(tokens: &[Token], name: &str) -> bool {
    let Some((token, tokens)) = tokens.split_first() else {
        return name.is_empty();
    };
    match token {
        Token::Text(text) => name
            .strip_prefix(text.as_str())
            .is_some_and(|rest| matches(tokens, rest)),
        Token::Star => (0..=name.len()).any(|end| matches(tokens, &name[end..])),
        Token::Range(low, high) => {
            let digits = name.bytes().take_while(u8::is_ascii_digit).count();
            (1..=digits).any(|end| {
                let (number, rest) = name.split_at(end);
                let canonical = number == "0" || !number.starts_with('0');
                let within = number
                    .parse()
                    .is_ok_and(|number: u32| (*low..=*high).contains(&number));
                canonical && within && matches(tokens, rest)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment_matches(pattern: &str, name: &str) -> bool {
        parse_segment(pattern).unwrap().matches(name)
    }

    #[test]
    fn a_range_matches_whole_numbers_not_their_first_digits() {
        assert!(segment_matches("node{0..4}", "node4"));
        assert!(!segment_matches("node{0..4}", "node12"));
        assert!(!segment_matches("node{0..4}", "node5"));
        assert!(segment_matches("node{8..12}", "node10"));
        assert!(!segment_matches("node{0..4}", "node04"));
    }

    #[test]
    fn a_star_matches_any_part_of_a_segment() {
        assert!(segment_matches("node1*", "node1"));
        assert!(segment_matches("node1*", "node19"));
        assert!(!segment_matches("node1*", "node21"));
        assert!(segment_matches("*.4", "l1.4"));
        assert!(segment_matches("*", "vpc"));
    }

    #[test]
    fn braces_hold_texts_and_ranges() {
        for (name, expected) in [
            ("ub1", true),
            ("ub4", true),
            ("ub5", true),
            ("ub6", false),
            ("ub2", false),
        ] {
            assert_eq!(segment_matches("ub{1,4..5}", name), expected, "{name}");
        }
        assert!(segment_matches("{npu,cpu}{0,1}", "cpu1"));
        assert!(!segment_matches("{npu,cpu}{0,1}", "cpu2"));
    }

    #[test]
    fn a_malformed_pattern_is_told_what_to_write() {
        for (pattern, part) in [
            ("", "an address is wanted"),
            ("node0\nnode1", "one line without control characters"),
            ("node0//npu1", "a segment is empty"),
            ("node0/", "a segment is empty"),
            ("node{1,4", "is not closed"),
            ("node1}", "closes nothing"),
            ("node{}", "each alternative"),
            ("node{7..0}", "write {0..7}"),
            ("node{a..b}", "`a` is not a whole number"),
            (
                "node{0..99999999999}",
                "`99999999999` is not a whole number",
            ),
            ("no**", "stands for whole segments"),
        ] {
            let error = parse(pattern).unwrap_err();
            assert!(error.contains(part), "{pattern}: {error}");
        }
        let many = format!("{{{0}}}{{{0}}}", vec!["a"; 40].join(","));
        assert!(
            parse(&many)
                .unwrap_err()
                .contains("more than 1024 alternatives")
        );
    }
}
