//! Where messages wait: slots that are reused, latest freed first, so that a busy shard stays in its caches.

/// Values by slot number. A freed slot keeps its value until it is reused.
pub struct Slab<T> {
    values: Vec<T>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    #[inline]
    pub fn insert(&mut self, value: T) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.values[slot as usize] = value;
            slot
        } else {
            let slot =
                u32::try_from(self.values.len()).expect("fewer than 2^32 messages are pending");
            self.values.push(value);
            slot
        }
    }

    #[inline]
    pub fn get_mut(&mut self, slot: u32) -> &mut T {
        &mut self.values[slot as usize]
    }

    #[inline]
    pub fn free(&mut self, slot: u32) {
        self.free.push(slot);
    }
}
