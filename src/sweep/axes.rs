//! The syntax of a grid's axes: `KEY=VALUE,VALUE,…`, with ranges, and several keys that move together.

use crate::error::{Error, Result};

/// A grid of more points is a slip of the keyboard.
pub const POINTS_MAX: usize = 10_000;

/// One axis: keys that are set to the same value, and the values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    pub keys: Vec<String>,
    /// As they were written, ranges spelt out.
    pub values: Vec<String>,
}

/// Parses all `--set` options. Those with one value come back as they are, to be set on every point; the others are
/// axes, in the order they were given.
///
/// # Errors
/// An option that cannot be read, or a key that is set twice.
pub fn axes(sets: &[String]) -> Result<(Vec<String>, Vec<Axis>)> {
    let (mut fixed, mut axes) = (Vec::new(), Vec::new());
    let mut seen: Vec<String> = Vec::new();
    for set in sets {
        let axis = parse(set)?;
        for key in &axis.keys {
            if seen.contains(key) {
                return Err(Error::user(format!(
                    "--set {set}: {key} is set twice, expected all its values in one --set"
                )));
            }
            seen.push(key.clone());
        }
        if axis.values.len() == 1 {
            fixed.extend(axis.keys.iter().map(|k| format!("{k}={}", axis.values[0])));
        } else {
            axes.push(axis);
        }
    }
    size(&axes)?;
    Ok((fixed, axes))
}

fn parse(set: &str) -> Result<Axis> {
    let Some((keys, values)) = set.split_once('=') else {
        return Err(Error::user(format!(
            "--set {set}: expected key=value,value,…, such as --set decode.max_batch_per_npu=32,64,96"
        )));
    };
    let keys = keys.split('+').map(|k| k.trim().to_string()).collect();
    let mut all = Vec::new();
    for item in items(values) {
        if item.is_empty() {
            return Err(Error::user(format!(
                "--set {set}: a value is missing, expected key=value,value,…"
            )));
        }
        match range(item).map_err(|why| Error::user(format!("--set {set}: {item}: {why}")))? {
            Some(range) => all.extend(range),
            None => all.push(item.to_string()),
        }
        if all.len() > POINTS_MAX {
            return Err(Error::user(format!(
                "--set {set}: more than {POINTS_MAX} values, expected at most {POINTS_MAX} points in the whole grid"
            )));
        }
    }
    if let Some(twice) = all
        .iter()
        .enumerate()
        .find_map(|(i, v)| all[..i].contains(v).then_some(v))
    {
        return Err(Error::user(format!(
            "--set {set}: {twice} is there twice, expected each value once"
        )));
    }
    Ok(Axis { keys, values: all })
}

/// Splits at commas that are not inside quotes or brackets.
fn items(text: &str) -> Vec<&str> {
    let (mut items, mut start, mut depth, mut quote) = (Vec::new(), 0, 0u32, None);
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), _) if q == c => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                items.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    items.push(text[start..].trim());
    items
}

/// `32..128:32` is 32, 64, 96, 128; `8..64:x2` is 8, 16, 32, 64; without a step it is 1. Both ends count. `None`
/// for what is not a range of numbers.
fn range(item: &str) -> std::result::Result<Option<Vec<String>>, String> {
    let Some((from, rest)) = item.split_once("..") else {
        return Ok(None);
    };
    let (to, step) = match rest.split_once(':') {
        Some((to, step)) => (to, Some(step.trim())),
        None => (rest, None),
    };
    let (from, to) = (from.trim(), to.trim());
    let (Ok(low), Ok(high)) = (from.parse::<f64>(), to.parse::<f64>()) else {
        return Ok(None);
    };
    let (times, step_text) = match step {
        Some(s) => match s.strip_prefix(['x', 'X']) {
            Some(factor) => (true, factor),
            None => (false, s),
        },
        None => (false, "1"),
    };
    let Ok(step) = step_text.parse::<f64>() else {
        return Err(
            "expected a range such as 32..128:32 (steps of 32) or 8..64:x2 (doubling)".into(),
        );
    };
    let finite = low.is_finite() && high.is_finite() && step.is_finite();
    let grows = if times {
        step > 1.0 && low > 0.0
    } else {
        step > 0.0
    };
    if !finite || !grows || low > high {
        return Err(
            "expected a range from small to large, with a step above 0 (or a factor above 1)"
                .into(),
        );
    }
    // Room for the last value where steps are no exact binary fractions.
    let steps = if times {
        ((high / low).ln() / step.ln() + 1e-9).floor()
    } else {
        ((high - low) / step + 1e-9).floor()
    };
    if steps >= POINTS_MAX as f64 {
        return Err(format!(
            "is {steps:.0} steps, expected at most {POINTS_MAX} points in the whole grid"
        ));
    }
    let decimals = [from, to, step_text]
        .iter()
        .map(|t| t.split_once('.').map_or(0, |(_, d)| d.len()))
        .max()
        .unwrap_or(0);
    let value = |i: f64| {
        if times {
            let v = low * step.powf(i);
            // Whole where the ends are.
            if decimals == 0 {
                format!("{v:.0}")
            } else {
                format!("{v}")
            }
        } else {
            format!("{:.decimals$}", low + step * i)
        }
    };
    Ok(Some((0..=steps as u64).map(|i| value(i as f64)).collect()))
}

/// Points of the grid that axes span.
///
/// # Errors
/// More than [`POINTS_MAX`].
pub fn size(axes: &[Axis]) -> Result<usize> {
    let size = axes
        .iter()
        .fold(1u128, |n, a| n.saturating_mul(a.values.len() as u128));
    if size > POINTS_MAX as u128 {
        let sides: Vec<String> = axes.iter().map(|a| a.values.len().to_string()).collect();
        return Err(Error::user(format!(
            "--set: the grid has {size} points ({}), expected at most {POINTS_MAX}",
            sides.join(" x ")
        )));
    }
    Ok(size as usize)
}

/// Which value of each axis the point with this index has; the last axis varies fastest.
pub fn place(axes: &[Axis], index: usize) -> Vec<usize> {
    let mut rest = index;
    let mut place: Vec<usize> = axes
        .iter()
        .rev()
        .map(|a| {
            let i = rest % a.values.len();
            rest /= a.values.len();
            i
        })
        .collect();
    place.reverse();
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(set: &str) -> Vec<String> {
        parse(set).unwrap().values
    }

    fn refusal(sets: &[&str]) -> String {
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_string()).collect();
        axes(&sets).unwrap_err().to_string()
    }

    #[test]
    fn values_are_split_at_commas_that_separate_them() {
        assert_eq!(values("k=1,2 , 3"), ["1", "2", "3"]);
        assert_eq!(
            values("k={dist=\"lognormal\", mean=9}, 4096,\"a,b\",[1,2]"),
            ["{dist=\"lognormal\", mean=9}", "4096", "\"a,b\"", "[1,2]"]
        );
        assert_eq!(values("k=../trace.jsonl"), ["../trace.jsonl"]);
    }

    #[test]
    fn ranges_have_both_their_ends() {
        assert_eq!(values("k=32..128:32"), ["32", "64", "96", "128"]);
        assert_eq!(values("k=1..3,8"), ["1", "2", "3", "8"]);
        assert_eq!(
            values("k=0.5..0.9:0.1"),
            ["0.5", "0.6", "0.7", "0.8", "0.9"]
        );
        assert_eq!(values("k=8..100:x2"), ["8", "16", "32", "64"]);
        assert_eq!(values("k=1..1000:x10"), ["1", "10", "100", "1000"]);
        assert_eq!(values("k=5..5"), ["5"]);
    }

    #[test]
    fn the_last_axis_varies_fastest_and_joined_keys_are_one_axis() {
        let sets = ["a=1,2".into(), "b+c=x,y,z".into(), "d=7".into()];
        let (fixed, axes) = axes(&sets).unwrap();
        assert_eq!(fixed, ["d=7"]);
        assert_eq!(axes[1].keys, ["b", "c"]);
        assert_eq!(size(&axes).unwrap(), 6);
        let order: Vec<Vec<usize>> = (0..6).map(|i| place(&axes, i)).collect();
        assert_eq!(
            order,
            [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]].map(|p| p.to_vec())
        );
    }

    #[test]
    fn what_cannot_be_a_grid_is_refused_with_the_reason() {
        assert!(refusal(&["seed"]).contains("--set seed: expected key=value"));
        assert!(refusal(&["seed=1,,2"]).contains("a value is missing"));
        assert!(refusal(&["seed=1,2,1"]).contains("1 is there twice"));
        assert!(refusal(&["seed=1,2", "seed=3"]).contains("seed is set twice"));
        assert!(refusal(&["seed=9..1"]).contains("from small to large"));
        assert!(refusal(&["seed=1..9:x1"]).contains("from small to large"));
        assert!(refusal(&["seed=1..9:two"]).contains("expected a range such as"));
        assert!(refusal(&["seed=1..99999999999"]).contains("99999999998 steps"));
        assert!(
            refusal(&["a=1..1000", "b=1..2000"])
                .contains("2000000 points (1000 x 2000), expected at most 10000")
        );
    }
}
