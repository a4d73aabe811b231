//! A fault as it is said: `at 2s for 500ms: slow node12/npu3/die1/ub4 x0.3`.
//!
//! ```text
//! (at | from) TIME [for TIME | until TIME] : WORD ADDRESS [VALUE ...] [outbound | inbound]
//!
//! slow ADDRESS x0.3            throttle ADDRESS x0.5       hang ADDRESS
//! delay ADDRESS 5us            hbm_slow ADDRESS x0.5       crash ADDRESS [restart 2s]
//! jitter ADDRESS 5us           loss ADDRESS 2%             down ADDRESS
//! flap ADDRESS every 100ms up 50%
//! ```

use supernode_actors::fault::{Effect, Ways};
use supernode_actors::time::{Ps, ps_from_s};

/// All words, for messages.
pub const WORDS: &str = "slow, delay, jitter, loss, flap, down (links), throttle, hbm_slow, hang, crash (dies and CPUs)";

/// A fault before its parts are found.
#[derive(Clone, Debug, PartialEq)]
pub struct Spoken {
    pub start_ps: Ps,
    pub end_ps: Option<Ps>,
    pub effect: Effect,
    pub ways: Ways,
    pub address: String,
}

impl Spoken {
    /// Reads one line; errors say what is wrong with it, without repeating it.
    pub fn parse(line: &str) -> Result<Self, String> {
        let (when, what) = line.split_once(':').ok_or_else(|| {
            "a `:` is missing between when and what, as in `at 2s: crash node7/npu0/die1`"
                .to_string()
        })?;
        let (start_ps, mut end_ps) = parse_when(when)?;
        let mut words = what.split_whitespace();
        let word = words
            .next()
            .ok_or_else(|| format!("what happens is missing after `:`; expected {WORDS}"))?;
        check_word(word)?;
        let address = words
            .next()
            .ok_or_else(|| format!("`{word}` needs an address, such as node7/npu0/die1"))?
            .to_string();
        let mut rest: Vec<&str> = words.collect();
        let ways = match rest.last() {
            Some(&"outbound") => Ways::Out,
            Some(&"inbound") => Ways::In,
            _ => Ways::Both,
        };
        if ways != Ways::Both {
            rest.pop();
        }
        let (effect, restart_ps) = parse_effect(word, &rest)?;
        if let Some(ps) = restart_ps {
            if end_ps.is_some() {
                return Err("`restart` and `for` or `until` say the same twice: use one".into());
            }
            end_ps = Some(start_ps + ps);
        }
        Self {
            start_ps,
            end_ps,
            effect,
            ways,
            address,
        }
        .checked()
    }

    /// What no fault may be, however it was written.
    pub fn checked(self) -> Result<Self, String> {
        if self.ways != Ways::Both && !self.effect.is_of_links() {
            return Err(format!(
                "`{}` has no direction: inbound and outbound are for links",
                self.effect.word()
            ));
        }
        if self.end_ps.is_some_and(|end| end <= self.start_ps) {
            return Err("it ends before it begins".into());
        }
        Ok(self)
    }

    /// The line that says this.
    pub fn text(&self) -> String {
        let mut line = format!("at {}", time_text(self.start_ps));
        if let Some(end) = self.end_ps
            && self.effect != Effect::Crash
        {
            line.push_str(&format!(" for {}", time_text(end - self.start_ps)));
        }
        line.push_str(&format!(": {} {}", self.effect.word(), self.address));
        match self.effect {
            Effect::Slow(f) | Effect::Throttle(f) | Effect::HbmSlow(f) => {
                line.push_str(&format!(" x{f}"));
            }
            Effect::Delay(ps) | Effect::Jitter(ps) => {
                line.push_str(&format!(" {}", time_text(ps)));
            }
            Effect::Loss(p) => line.push_str(&format!(" {}%", number(p * 100.0))),
            Effect::Flap { period_ps, up } => line.push_str(&format!(
                " every {} up {}%",
                time_text(period_ps),
                number(up * 100.0)
            )),
            Effect::Crash => {
                if let Some(end) = self.end_ps {
                    line.push_str(&format!(" restart {}", time_text(end - self.start_ps)));
                }
            }
            Effect::Down | Effect::Hang => {}
        }
        match self.ways {
            Ways::Both => {}
            Ways::Out => line.push_str(" outbound"),
            Ways::In => line.push_str(" inbound"),
        }
        line
    }
}

fn number(x: f64) -> f64 {
    (x * 1e6).round() / 1e6
}

pub fn check_word(word: &str) -> Result<(), String> {
    let known = [
        "slow", "delay", "jitter", "loss", "flap", "down", "throttle", "hbm_slow", "hang", "crash",
    ];
    if known.contains(&word) {
        return Ok(());
    }
    let near = known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(word, k), *k))
        .min()
        .filter(|(distance, _)| *distance <= 2);
    Err(match near {
        Some((_, k)) => format!("unknown word `{word}`: did you mean {k}? There are {WORDS}"),
        None => format!("unknown word `{word}`: there are {WORDS}"),
    })
}

fn parse_when(when: &str) -> Result<(Ps, Option<Ps>), String> {
    let words: Vec<&str> = when.split_whitespace().collect();
    let (start, rest) = match words[..] {
        ["at" | "from", start, ref rest @ ..] => (time_ps(start)?, rest),
        _ => {
            return Err(format!(
                "`{}`: expected a time before the `:`, such as `at 2s`, `at 2s for 500ms` or `from 1s until 3s`",
                when.trim()
            ));
        }
    };
    match rest {
        [] => Ok((start, None)),
        ["for", span] => {
            let span_ps = time_ps(span)?;
            if span_ps == 0 {
                return Err(format!("`for {span}`: expected more than 0"));
            }
            Ok((start, Some(start + span_ps)))
        }
        ["until", end] => Ok((start, Some(time_ps(end)?))),
        other => Err(format!(
            "`{}`: expected `for TIME` or `until TIME` here",
            other.join(" ")
        )),
    }
}

/// An effect from its word and what follows the address; and when a crashed part restarts.
fn parse_effect(word: &str, rest: &[&str]) -> Result<(Effect, Option<Ps>), String> {
    let wrong = |expected: &str| {
        Err(format!(
            "`{word}` takes {expected} after the address{}",
            if rest.is_empty() {
                String::new()
            } else {
                format!(", not `{}`", rest.join(" "))
            }
        ))
    };
    let effect = match (word, rest) {
        ("slow", [f]) => Effect::Slow(factor(f)?),
        ("throttle", [f]) => Effect::Throttle(factor(f)?),
        ("hbm_slow", [f]) => Effect::HbmSlow(factor(f)?),
        ("slow" | "throttle" | "hbm_slow", _) => return wrong("a factor such as x0.3"),
        ("delay", [t]) => Effect::Delay(span_ps(t)?),
        ("jitter", [t]) => Effect::Jitter(span_ps(t)?),
        ("delay" | "jitter", _) => return wrong("a time such as 5us"),
        ("loss", [p]) => Effect::Loss(share(p)?),
        ("loss", _) => return wrong("a probability such as 2%"),
        ("flap", ["every", period, "up", up]) => Effect::Flap {
            period_ps: span_ps(period)?,
            up: share(up)?,
        },
        ("flap", _) => return wrong("`every TIME up SHARE`, such as `every 100ms up 50%`"),
        ("down", []) => Effect::Down,
        ("hang", []) => Effect::Hang,
        ("crash", []) => Effect::Crash,
        ("crash", ["restart", t] | ["restart", "after", t]) => {
            return Ok((Effect::Crash, Some(span_ps(t)?)));
        }
        ("crash", _) => return wrong("nothing, or `restart TIME`,"),
        _ => return wrong("nothing"),
    };
    Ok((effect, None))
}

/// `x0.3`, `0.3x`, `0.3` or `30%`: what is left, above 0 and below 1.
pub fn factor(text: &str) -> Result<f64, String> {
    let value = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().map(|p| p / 100.0),
        None => text.trim_matches('x').parse(),
    };
    match value {
        Ok(f) => check_factor(f),
        Err(_) => Err(format!("`{text}` is no factor: expected such as x0.3")),
    }
}

pub fn check_factor(f: f64) -> Result<f64, String> {
    if f > 0.0 && f < 1.0 {
        return Ok(f);
    }
    Err(format!(
        "factor {f}: expected above 0 and below 1, the share that is left (for nothing left: down or hang)"
    ))
}

/// `2%` or `0.02`: above 0 and below 1.
pub fn share(text: &str) -> Result<f64, String> {
    let value = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().map(|p| p / 100.0),
        None => text.parse(),
    };
    match value {
        Ok(p) => check_share(p),
        Err(_) => Err(format!("`{text}` is no share: expected such as 2% or 0.02")),
    }
}

pub fn check_share(p: f64) -> Result<f64, String> {
    if p > 0.0 && p < 1.0 {
        return Ok(p);
    }
    Err(format!(
        "a share of {p}: expected above 0 and below 1 (0% to 100%, for all of it: down)"
    ))
}

/// A time of a run, 0 or more.
pub fn time_ps(text: &str) -> Result<Ps, String> {
    let expected = "expected a time such as 2s, 500ms, 50us or 3m";
    if text.starts_with('-') {
        return Err(format!(
            "`{text}`: a time before the run begins; {expected}"
        ));
    }
    let split = text
        .find(|c: char| c.is_ascii_alphabetic() && c != 'e' && c != 'E')
        .unwrap_or(text.len());
    let (value, unit) = text.split_at(split);
    let factor = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        "ns" => 1e-9,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        "" if value == "0" => 0.0,
        _ => return Err(format!("`{text}`: {expected}")),
    };
    match value.parse::<f64>() {
        Ok(v) if v.is_finite() && v >= 0.0 && v * factor <= crate::scenario::SPAN_S_MAX => {
            Ok(ps_from_s(v * factor))
        }
        _ => Err(format!("`{text}`: {expected}")),
    }
}

pub fn span_ps(text: &str) -> Result<Ps, String> {
    match time_ps(text)? {
        0 => Err(format!("`{text}`: expected more than 0")),
        ps => Ok(ps),
    }
}

/// The shortest exact form.
pub fn time_text(ps: Ps) -> String {
    for (unit, per) in [
        ("s", 1_000_000_000_000u64),
        ("ms", 1_000_000_000),
        ("us", 1_000_000),
        ("ns", 1_000),
    ] {
        // Up to three digits after the point.
        if ps >= per && (ps * 1_000).is_multiple_of(per) {
            return format!("{}{unit}", ps as f64 / per as f64);
        }
    }
    if ps == 0 {
        return "0s".into();
    }
    format!("{}ns", ps as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use supernode_actors::time::{PS_PER_MS, PS_PER_S, PS_PER_US};

    #[test]
    fn lines_read_as_they_are_said() {
        let s = Spoken::parse("at 2s for 500ms: slow node12/npu3/die1/ub4 x0.3").unwrap();
        assert_eq!(s.start_ps, 2 * PS_PER_S);
        assert_eq!(s.end_ps, Some(2_500 * PS_PER_MS));
        assert_eq!(s.effect, Effect::Slow(0.3));
        let s = Spoken::parse("at 3s: crash node7/npu0/die1").unwrap();
        assert_eq!((s.effect, s.end_ps), (Effect::Crash, None));
        let s = Spoken::parse("from 1s: loss plane4/l2.9 2% inbound").unwrap();
        assert_eq!((s.effect, s.ways), (Effect::Loss(0.02), Ways::In));
        let s = Spoken::parse("at 1s: crash node7 restart 2s").unwrap();
        assert_eq!(s.end_ps, Some(3 * PS_PER_S));
        let s = Spoken::parse("from 0s until 1s: flap node0/l1.0/up3 every 50us up 25%").unwrap();
        let up = 0.25;
        assert_eq!(
            s.effect,
            Effect::Flap {
                period_ps: 50 * PS_PER_US,
                up
            }
        );
    }

    #[test]
    fn a_line_says_itself() {
        for line in [
            "at 2s for 500ms: slow node12/npu3/die1/ub4 x0.3",
            "at 3s: crash node7/npu0/die1",
            "at 1.5s: crash node7 restart 2s",
            "at 1s: loss plane4/l2.9 2% inbound",
            "at 0s for 1s: flap node0/l1.0/up3 every 50us up 25%",
            "at 250ms for 10ms: hang node0/cpu1",
            "at 1s: delay node0/vpc 5us outbound",
        ] {
            assert_eq!(Spoken::parse(line).unwrap().text(), line);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, why) in [
            ("crash node7", "a `:` is missing"),
            ("at -1s: crash node7", "before the run begins"),
            ("at 1s: slow node7 x0", "factor 0"),
            ("at 1s: slow node7", "takes a factor such as x0.3"),
            ("at 1s: loss node7 200%", "a share of 2"),
            ("at 1s for 0s: down node7", "more than 0"),
            ("from 2s until 1s: down node7", "ends before it begins"),
            ("at 1s: crush node7", "did you mean crash?"),
            ("at 1s: crash", "needs an address"),
            ("at 1s: hang node7 inbound", "has no direction"),
            ("at 1s for 1s: crash node7 restart 1s", "the same twice"),
            ("at soon: down node7", "expected a time"),
        ] {
            let got = Spoken::parse(line).unwrap_err();
            assert!(got.contains(why), "{line}: {got}");
        }
    }
}
