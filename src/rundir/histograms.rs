//! `actors.hlog`: queueing, service and transfer times of every actor as an HdrHistogram V2 interval log, in
//! nanoseconds, which HdrHistogram's own tools read. While a machine runs, actors keep cheaper log-linear histograms
//! of their own (a shift and an increment, a few hundred bytes each); an entry here is the middle of one of their
//! buckets, within 13% of what was measured.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, IntervalLogWriterError, LogEntry, Tag,
};
use hdrhistogram::serialization::{Deserializer, V2Serializer};
use supernode_actors::figures::ActorFigures;
use supernode_actors::stats::ActorHist;
use supernode_actors::time::{PS_PER_NS, PS_PER_S};
use supernode_topology::Machine;

use super::actors::address;

/// Which of an actor's three histograms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    Queue,
    Service,
    Transfer,
}

impl Which {
    pub const ALL: [Self; 3] = [Self::Queue, Self::Service, Self::Transfer];

    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Service => "service",
            Self::Transfer => "transfer",
        }
    }
}

/// Longest time that is told apart: an hour.
const NS_MAX: u64 = 3_600_000_000_000;

fn hdr(hist: &ActorHist) -> Histogram<u64> {
    let mut h = Histogram::new_with_bounds(1, NS_MAX, 2).expect("these bounds are allowed");
    for (ps, n) in hist.buckets() {
        h.saturating_record_n(ps / PS_PER_NS, n);
    }
    h
}

pub fn write(
    out: &mut impl Write,
    machine: &Machine,
    figures: &[ActorFigures],
    end_ps: u64,
) -> std::io::Result<()> {
    let mut serializer = V2Serializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("[Supernode: times of each actor in nanoseconds; Tag=address|side|queue, service or transfer]")
        .begin_log_with(out, &mut serializer)?;
    let whole = Duration::from_secs_f64(end_ps as f64 / PS_PER_S as f64);
    for f in figures {
        let address = address(machine, f);
        for (which, hist) in Which::ALL
            .into_iter()
            .zip([&f.queue, &f.service, &f.transfer])
        {
            if hist.count() == 0 {
                continue;
            }
            let tag = format!("{address}|{}|{}", f.side, which.name());
            log.write_histogram(&hdr(hist), Duration::ZERO, whole, Tag::new(&tag))
                .map_err(|e| match e {
                    IntervalLogWriterError::IoError(e) => e,
                    IntervalLogWriterError::SerializeError(e) => {
                        std::io::Error::other(e.to_string())
                    }
                })?;
        }
    }
    Ok(())
}

/// All histograms of a run.
#[derive(Debug, Default)]
pub struct Histograms(BTreeMap<(String, String), [Option<Histogram<u64>>; 3]>);

impl Histograms {
    /// # Errors
    /// Says which line is no histogram.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        use base64::Engine as _;
        let mut all = Self::default();
        let mut deserializer = Deserializer::new();
        for (i, entry) in IntervalLogIterator::new(bytes).enumerate() {
            let wrong = |why: &str| format!("entry {}: {why}", i + 1);
            let entry = entry.map_err(|_| wrong("not an interval of an HdrHistogram log"))?;
            let LogEntry::Interval(interval) = entry else {
                continue;
            };
            let tag = interval.tag().map_or("", |t| t.as_str());
            let mut parts = tag.split('|');
            let (Some(address), Some(side), Some(which)) =
                (parts.next(), parts.next(), parts.next())
            else {
                return Err(wrong("its tag is not address|side|what"));
            };
            let which = Which::ALL
                .into_iter()
                .position(|w| w.name() == which)
                .ok_or_else(|| wrong("its tag is of no known kind"))?;
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(interval.encoded_histogram())
                .map_err(|e| wrong(&e.to_string()))?;
            let hist = deserializer
                .deserialize(&mut bytes.as_slice())
                .map_err(|e| wrong(&e.to_string()))?;
            all.0.entry((address.into(), side.into())).or_default()[which] = Some(hist);
        }
        Ok(all)
    }

    pub fn of(&self, address: &str, side: &str, which: Which) -> Option<&Histogram<u64>> {
        self.0
            .get(&(address.to_string(), side.to_string()))
            .and_then(|h| h[which as usize].as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let machine = Machine::builtin("mini4").unwrap();
        let mut queue = ActorHist::default();
        for us in 1..=1_000u64 {
            queue.record(us * 1_000_000);
        }
        let f = ActorFigures {
            first: machine.die_lane(3, 0).0,
            count: machine.planes(),
            side: "down",
            messages: 1_000,
            queue: queue.clone(),
            ..ActorFigures::default()
        };
        let mut bytes = Vec::new();
        write(&mut bytes, &machine, &[f], 1_000_000_000_000).unwrap();
        let all = Histograms::read(&bytes).unwrap();
        let h = all
            .of("node0/npu1/die1/ub{0..6}", "down", Which::Queue)
            .expect("it was written");
        assert_eq!(h.len(), 1_000);
        for q in [0.5, 0.99] {
            let (want, got) = (
                queue.quantile_ps(q) as f64,
                h.value_at_quantile(q) as f64 * 1e3,
            );
            assert!((want - got).abs() / want < 0.02, "{q}: {want} {got}");
        }
        assert!(
            all.of("node0/npu1/die1/ub{0..6}", "up", Which::Queue)
                .is_none()
        );
        assert!(Histograms::read(b"Tag=x|y|queue,0.0,1.0,1.0,garbage\n").is_err());
    }
}
