//! The few pieces of the protobuf wire format that traces need, both ways.

/// Appends fields to a message.
#[derive(Debug, Default)]
pub struct Out(pub Vec<u8>);

impl Out {
    #[inline]
    fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.0.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.0.push(v as u8);
    }

    #[inline]
    pub fn uint(&mut self, field: u32, v: u64) {
        self.varint(u64::from(field) << 3);
        self.varint(v);
    }

    pub fn fixed64(&mut self, field: u32, v: u64) {
        self.varint(u64::from(field) << 3 | 1);
        self.0.extend_from_slice(&v.to_le_bytes());
    }

    pub fn bytes(&mut self, field: u32, v: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(v.len() as u64);
        self.0.extend_from_slice(v);
    }

    /// A message inside: its length comes first, so it is made room for and put in afterwards. Messages here are
    /// shorter than 2 MB.
    #[inline]
    pub fn message(&mut self, field: u32, content: impl FnOnce(&mut Self)) {
        self.varint(u64::from(field) << 3 | 2);
        let at = self.0.len();
        self.0.push(0);
        content(self);
        let n = self.0.len() - at - 1;
        if n < 0x80 {
            self.0[at] = n as u8;
        } else {
            let mut length = Self::default();
            length.varint(n as u64);
            self.0.splice(at..=at, length.0);
        }
    }
}

/// A field of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Field<'a> {
    Uint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Field<'a> {
    pub fn uint(self) -> u64 {
        match self {
            Self::Uint(v) | Self::Fixed64(v) => v,
            Self::Fixed32(v) => v.into(),
            Self::Bytes(_) => 0,
        }
    }

    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(b) => b,
            _ => &[],
        }
    }

    pub fn text(self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }
}

/// The bytes are no message, or end inside one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Walks over the fields of a message.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, Broken> {
        let mut v = 0u64;
        for (i, &b) in self.0.iter().enumerate().take(10) {
            v |= u64::from(b & 0x7f) << (7 * i);
            if b < 0x80 {
                self.0 = &self.0[i + 1..];
                return Ok(v);
            }
        }
        Err(Broken)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(Broken)?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u32, Field<'a>), Broken> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Broken)?;
        let value = match tag & 7 {
            0 => Field::Uint(self.varint()?),
            1 => {
                let b = self.take(8)?;
                Field::Fixed64(u64::from_le_bytes(b.try_into().map_err(|_| Broken)?))
            }
            2 => {
                let n = usize::try_from(self.varint()?).map_err(|_| Broken)?;
                Field::Bytes(self.take(n)?)
            }
            5 => {
                let b = self.take(4)?;
                Field::Fixed32(u32::from_le_bytes(b.try_into().map_err(|_| Broken)?))
            }
            _ => return Err(Broken),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Field<'a>), Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let next = self.field();
        if next.is_err() {
            self.0 = &[];
        }
        Some(next)
    }
}

/// Bytes of the whole fields at the start of a message that ends anywhere.
pub fn whole(bytes: &[u8]) -> usize {
    let mut fields = Fields(bytes);
    let mut rest = bytes.len();
    while fields.next().is_some_and(|field| field.is_ok()) {
        rest = fields.0.len();
    }
    // Without one whole field nothing was taken.
    bytes.len() - rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut out = Out::default();
        out.uint(1, 300);
        out.message(2, |m| {
            m.fixed64(3, u64::MAX);
            m.bytes(4, &[7; 200]);
        });
        out.uint(500, 0);
        let fields: Vec<_> = Fields(&out.0).map(Result::unwrap).collect();
        assert_eq!(fields[0], (1, Field::Uint(300)));
        assert_eq!(fields[2], (500, Field::Uint(0)));
        let inner: Vec<_> = Fields(fields[1].1.bytes()).map(Result::unwrap).collect();
        assert_eq!(inner[0], (3, Field::Fixed64(u64::MAX)));
        assert_eq!(inner[1].1.bytes(), [7; 200]);
        for cut in 1..out.0.len() {
            let last = Fields(&out.0[..cut]).last();
            let whole = [3, out.0.len() - 3].contains(&cut);
            assert_eq!(last == Some(Err(Broken)), !whole, "{cut}");
        }
    }
}
