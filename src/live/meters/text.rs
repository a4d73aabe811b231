//! Prometheus' text format.

use std::fmt::Write;

use super::Histogram;

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Gauge,
    Counter,
}

/// Series being written, all with the same labels.
pub struct Text {
    pub out: String,
    /// As they stand inside braces; may be empty.
    labels: String,
}

impl Text {
    pub fn new(labels: String) -> Self {
        Self {
            out: String::with_capacity(32 * 1024),
            labels,
        }
    }

    /// Other labels from here on.
    pub fn labelled(self, labels: String) -> Self {
        Self { labels, ..self }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample; `more` are labels of its own.
    fn sample(&mut self, name: &str, more: &str, value: f64) {
        let labels = &self.labels;
        let comma = if labels.is_empty() || more.is_empty() {
            ""
        } else {
            ","
        };
        let _ = if labels.is_empty() && more.is_empty() {
            writeln!(self.out, "{name} {value}")
        } else {
            writeln!(self.out, "{name}{{{labels}{comma}{more}}} {value}")
        };
    }

    /// One series each.
    pub fn each<'a>(&mut self, rows: impl IntoIterator<Item = (&'a str, Kind, &'a str, f64)>) {
        for (name, kind, help, value) in rows {
            self.with(name, kind, help, &[(String::new(), value)]);
        }
    }

    /// A series for each value of one more label.
    pub fn by<'a>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        key: &str,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) {
        let values = values.into_iter();
        let values: Vec<_> = values
            .map(|(label, value)| (format!("{key}=\"{label}\""), value))
            .collect();
        self.with(name, kind, help, &values);
    }

    /// A series for each of these labels.
    pub fn with(&mut self, name: &str, kind: Kind, help: &str, values: &[(String, f64)]) {
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        self.head(name, kind, help);
        for (more, value) in values {
            self.sample(name, more, *value);
        }
    }

    pub fn histogram(&mut self, name: &str, help: &str, h: &Histogram) {
        self.buckets(name, help, h.cumulative(), h.sum());
    }

    /// A histogram from (upper bound, values up to it), the last bound infinite.
    pub fn buckets(
        &mut self,
        name: &str,
        help: &str,
        cumulative: impl Iterator<Item = (f64, u64)>,
        sum: f64,
    ) {
        self.head(name, "histogram", help);
        let mut count = 0;
        for (bound, n) in cumulative {
            let bound = if bound.is_infinite() {
                "+Inf".to_string()
            } else {
                format!("{bound:?}")
            };
            self.sample(
                &format!("{name}_bucket"),
                &format!("le=\"{bound}\""),
                n as f64,
            );
            count = n;
        }
        self.sample(&format!("{name}_sum"), "", sum);
        self.sample(&format!("{name}_count"), "", count as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_in_braces_only_where_there_are_any() {
        let mut t = Text::new(String::new());
        t.each([("a", Kind::Gauge, "A.", 1.5)]);
        let mut t = t.labelled("m=\"x\"".into());
        t.by("b", Kind::Counter, "B.", "k", [("v", 2.0)]);
        t.buckets("c", "C.", [(1.0, 3), (f64::INFINITY, 4)].into_iter(), 9.0);
        let expected = "\
# HELP a A.
# TYPE a gauge
a 1.5
# HELP b B.
# TYPE b counter
b{m=\"x\",k=\"v\"} 2
# HELP c C.
# TYPE c histogram
c_bucket{m=\"x\",le=\"1.0\"} 3
c_bucket{m=\"x\",le=\"+Inf\"} 4
c_sum{m=\"x\"} 9
c_count{m=\"x\"} 4
";
        assert_eq!(t.out, expected);
    }
}
