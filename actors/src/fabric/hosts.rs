//! What CPUs are to dies beside what they answer: each launches the steps and batches of its dies, and all that is read
//! from it or written to it crosses its memory. Neither is in the way as long as a CPU is well: a launch takes less than the
//! step before it, and DRAM more than the CPU's ports do. So only CPUs are looked after that faults slow, and those of machines
//! whose DRAM is slower than their ports.

use std::collections::BTreeMap;

use supernode_topology::Machine;

use super::{PerByte, Served};
use crate::runtime::Actor;
use crate::time::Ps;

/// The CPUs of a shard, as launchers and as memories.
#[derive(Debug)]
pub struct Hosts {
    slowed: BTreeMap<Actor, f64>,
    memories: BTreeMap<Actor, Memory>,
    well: PerByte,
    gb_per_s: f64,
    /// DRAM limits transfers without a fault too.
    limits: bool,
}

#[derive(Clone, Copy, Debug)]
struct Memory {
    per_byte: PerByte,
    free_ps: Ps,
}

impl Hosts {
    pub fn new(machine: &Machine) -> Self {
        let s = &machine.spec;
        let cpus = f64::from(machine.cpus_per_node());
        let gb_per_s = s.storage.dram_gb_per_s_per_node / cpus;
        let most =
            |path: &supernode_topology::UbPathSpec| path.intra_gb_per_s.max(path.inter_gb_per_s);
        let ports = most(&s.ub.npu_cpu_read) + most(&s.ub.npu_cpu_write);
        Self {
            slowed: BTreeMap::new(),
            memories: BTreeMap::new(),
            well: PerByte::from_gb_per_s(gb_per_s),
            gb_per_s,
            limits: gb_per_s < ports,
        }
    }

    /// What faults leave of a CPU's clock and memory bandwidth; `None`: all.
    pub fn slow(&mut self, cpu: Actor, pace: Option<(f64, f64)>) {
        let (clock, memory) = pace.unwrap_or((1.0, 1.0));
        self.slowed.remove(&cpu);
        if clock < 1.0 {
            self.slowed.insert(cpu, clock);
        }
        let free_ps = self.memories.remove(&cpu).map_or(0, |m| m.free_ps);
        if memory < 1.0 {
            let per_byte = PerByte::from_gb_per_s(self.gb_per_s * memory);
            self.memories.insert(cpu, Memory { per_byte, free_ps });
        }
    }

    /// What is left of a CPU's clock, if not all.
    pub fn clock(&self, cpu: Actor) -> Option<f64> {
        self.slowed.get(&cpu).copied()
    }

    /// `bytes` are read from a CPU's memory or written to it: when the last one is through, if that is later than without it
    /// being in the way. Reads and writes share it.
    pub fn through_memory(&mut self, cpu: Actor, now: Ps, bytes: u64, port: Served) -> Ps {
        if self.memories.is_empty() && !self.limits {
            return port.end_ps;
        }
        let memory = match self.limits {
            true => self.memories.entry(cpu).or_insert(Memory {
                per_byte: self.well,
                free_ps: 0,
            }),
            false => match self.memories.get_mut(&cpu) {
                Some(memory) => memory,
                None => return port.end_ps,
            },
        };
        memory.free_ps = memory.free_ps.max(now) + memory.per_byte.ps(bytes);
        memory.free_ps.max(port.end_ps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn end_ps(hosts: &mut Hosts) -> Ps {
        let port = Served {
            start_ps: 0,
            end_ps: 1_000,
        };
        hosts.through_memory(7, 0, MB, port)
    }

    #[test]
    fn memory_is_in_the_way_only_when_it_is_slower_than_what_crosses_it() {
        let machine = Machine::builtin("mini").unwrap();
        let mut hosts = Hosts::new(&machine);
        assert_eq!(end_ps(&mut hosts), 1_000);
        hosts.slow(7, Some((1.0, 0.5)));
        let half = hosts.gb_per_s * 0.5;
        let ps = (MB as f64 / half * 1e3) as Ps;
        assert!(end_ps(&mut hosts).abs_diff(ps) < 100);
        // What comes next waits for it.
        assert!(end_ps(&mut hosts).abs_diff(2 * ps) < 100);
        hosts.slow(7, None);
        assert_eq!(end_ps(&mut hosts), 1_000);
    }

    #[test]
    fn memory_that_is_slower_than_the_ports_is_always_in_the_way() {
        let text = "name = \"thin\"\nbase = \"mini\"\n[storage]\ndram_gb_per_s_per_node = 400\n";
        let machine = Machine::from_toml(text, "a thin machine").unwrap();
        let mut hosts = Hosts::new(&machine);
        assert!(end_ps(&mut hosts).abs_diff(MB * 10) < 100, "100 GB/s a CPU");
    }

    #[test]
    fn a_clock_is_as_it_was_when_the_fault_is_over() {
        let mut hosts = Hosts::new(&Machine::builtin("mini").unwrap());
        hosts.slow(7, Some((0.5, 1.0)));
        assert_eq!(hosts.clock(7), Some(0.5));
        assert_eq!(hosts.clock(6), None);
        hosts.slow(7, None);
        assert_eq!(hosts.clock(7), None);
    }
}
