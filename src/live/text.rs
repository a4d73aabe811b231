//! Text of a machine that computes no values: prompts are counted in tokens by rules, answers are words that are one
//! token each. A prompt's tokens also tell which KV blocks it shares with others.
//!
//! The rules follow DeepSeek's pre-tokenizer: a word with the space before it, up to three digits, a run of
//! punctuation. What its vocabulary does inside a word is estimated by length. `docs/live.md` has how far off counts are.

use supernode_actors::layout::mix;
use supernode_actors::request::Prefix;

use crate::workload::BLOCK_TOKENS;

/// Words that are one token in DeepSeek's vocabulary, with the space before them.
const WORDS: &str = include_str!("words.txt");

/// Ids of [`WORDS`]; below are what a vocabulary has for bytes and controls.
const FIRST_WORD: u32 = 1_000;
/// Ids of pieces of other text: a hash of the piece, from here on.
const FIRST_HASHED: u32 = 2_000;

/// Marks in a chat prompt, by DeepSeek-R1's names.
const BEGIN: u32 = 0;
const USER: u32 = 128_803;
const ASSISTANT: u32 = 128_804;

/// Letters of a word that make one token, and that each further one makes.
const WORD_CHARS: usize = 9;
const MORE_CHARS: usize = 4;
/// Characters of scripts without spaces, and of other alphabets, in one token.
const IDEOGRAPHS: usize = 2;
const OTHER_LETTERS: usize = 3;
const DIGITS: usize = 3;
const SIGNS: usize = 3;

fn words() -> &'static [&'static str] {
    static LIST: std::sync::OnceLock<Vec<&str>> = std::sync::OnceLock::new();
    LIST.get_or_init(|| WORDS.split_whitespace().collect())
}

/// Where a word stands among [`words`].
fn place_of(word: &str) -> Option<u32> {
    static SORTED: std::sync::OnceLock<Vec<(&str, u32)>> = std::sync::OnceLock::new();
    let sorted = SORTED.get_or_init(|| {
        let mut sorted: Vec<_> = words().iter().copied().zip(0..).collect();
        sorted.sort_unstable();
        sorted.dedup_by_key(|(word, _)| *word);
        sorted
    });
    let found = sorted.binary_search_by_key(&word, |(w, _)| w);
    found.ok().map(|at| sorted[at].1)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Letter,
    OtherLetter,
    Ideograph,
    Digit,
    Space,
    Sign,
}

fn kind(c: char) -> Kind {
    match c {
        c if c.is_ascii_alphabetic() => Kind::Letter,
        c if c.is_numeric() => Kind::Digit,
        c if c.is_whitespace() => Kind::Space,
        '\u{2e80}'..='\u{9fff}' | '\u{ac00}'..='\u{d7af}' | '\u{f900}'..='\u{faff}' => {
            Kind::Ideograph
        }
        '\u{20000}'..='\u{3ffff}' => Kind::Ideograph,
        c if c.is_alphabetic() => Kind::OtherLetter,
        _ => Kind::Sign,
    }
}

/// The tokens of a text, appended to `into`.
pub fn tokenize(text: &str, vocab: u32, into: &mut Vec<u32>) {
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        // A single space belongs to the word after it.
        let lead = usize::from(first == ' ' && rest[1..].starts_with(|c| kind(c) != Kind::Space));
        let body = &rest[lead..];
        let Some(kind_of_run) = body.chars().next().map(kind) else {
            into.push(id_of(" ", vocab));
            return;
        };
        let end = body.find(|c| kind(c) != kind_of_run).unwrap_or(body.len());
        let run = &rest[..lead + end];
        let (one, more) = match kind_of_run {
            Kind::Letter => (WORD_CHARS, MORE_CHARS),
            Kind::OtherLetter => (OTHER_LETTERS, OTHER_LETTERS),
            Kind::Ideograph => (IDEOGRAPHS, IDEOGRAPHS),
            Kind::Digit => (DIGITS, DIGITS),
            Kind::Sign => (SIGNS, SIGNS),
            Kind::Space => (usize::MAX, usize::MAX),
        };
        let mut cut = run;
        let mut most = one.saturating_add(lead);
        while !cut.is_empty() {
            let at = cut.char_indices().nth(most).map_or(cut.len(), |(i, _)| i);
            into.push(id_of(&cut[..at], vocab));
            cut = &cut[at..];
            most = more;
        }
        rest = &rest[run.len()..];
    }
}

fn id_of(piece: &str, vocab: u32) -> u32 {
    if let Some(i) = piece.strip_prefix(' ').and_then(place_of) {
        return FIRST_WORD + i;
    }
    let hash = piece.bytes().fold(0, |h: u64, b| mix(h ^ u64::from(b)));
    FIRST_HASHED + (hash % u64::from(vocab.max(FIRST_HASHED + 1) - FIRST_HASHED)) as u32
}

/// The text of token ids: exact for ids of placeholder words, a placeholder for others.
pub fn detokenize(ids: &[u32]) -> String {
    ids.iter()
        .flat_map(|&id| {
            let n = words().len() as u32;
            [" ", words()[(id.wrapping_sub(FIRST_WORD) % n) as usize]]
        })
        .collect()
}

/// The tokens of a chat: each message behind a mark of its role, and the mark that asks for an answer.
pub fn chat<'a>(messages: impl Iterator<Item = (&'a str, &'a str)>, vocab: u32) -> Vec<u32> {
    let mut tokens = vec![BEGIN];
    for (role, content) in messages {
        match role {
            "system" | "developer" => {}
            "assistant" => tokens.push(ASSISTANT),
            _ => tokens.push(USER),
        }
        tokenize(content, vocab, &mut tokens);
    }
    tokens.push(ASSISTANT);
    tokens
}

/// What a prompt shares with others: a chained hash of its content for each block.
pub fn prefix(tokens: &[u32]) -> Prefix {
    let mut hash = 0x7375_7065;
    let ids = tokens
        .chunks(BLOCK_TOKENS as usize)
        .map(|block| {
            hash = block.iter().fold(hash, |h, &t| mix(h ^ u64::from(t)));
            // Programs that read JSON numbers as floating point keep these whole.
            hash >> 11
        })
        .collect();
    Prefix::Blocks {
        block_tokens: BLOCK_TOKENS,
        ids,
    }
}

/// A hash of the whole prompt.
pub fn hash(tokens: &[u32]) -> u64 {
    tokens.iter().fold(1, |h, &t| mix(h ^ u64::from(t)))
}

/// The answer to one prompt: token `i` is a word with a space before it.
#[derive(Clone, Copy, Debug)]
pub struct Answer(pub u64);

impl Answer {
    pub fn word(self, i: u32) -> &'static str {
        let list = words();
        list[(mix(self.0 ^ u64::from(i)) % list.len() as u64) as usize]
    }

    /// Appends token `i`.
    pub fn push(self, i: u32, into: &mut String) {
        into.push(' ');
        into.push_str(self.word(i));
    }

    /// Where the first of `stops` occurs in the first `most` tokens: tokens up to the one that completes it, and bytes of
    /// text before it.
    pub fn stop_at(self, stops: &[String], most: u32) -> Option<(u32, usize)> {
        let longest = stops.iter().map(String::len).max()?;
        let (mut window, mut start) = (String::new(), 0usize);
        for i in 0..most {
            self.push(i, &mut window);
            let found = stops.iter().filter_map(|s| window.find(s.as_str())).min();
            if let Some(at) = found {
                return Some((i + 1, start + at));
            }
            // Words are ASCII: any cut is between characters.
            let cut = window.len().saturating_sub(longest);
            start += cut;
            window.drain(..cut);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: u32 = 129_280;

    fn count(text: &str) -> usize {
        let mut tokens = Vec::new();
        tokenize(text, VOCAB, &mut tokens);
        tokens.len()
    }

    #[test]
    fn an_answer_counts_one_token_a_word_and_survives_the_way_to_ids_and_back() {
        let mut text = String::new();
        (0..2_000).for_each(|i| Answer(7).push(i, &mut text));
        assert_eq!(count(&text), 2_000);
        let mut ids = Vec::new();
        tokenize(&text, VOCAB, &mut ids);
        assert_eq!(detokenize(&ids), text);
    }

    #[test]
    fn text_is_counted_by_its_words_digits_and_signs() {
        for (text, tokens) in [
            ("", 0),
            (" ", 1),
            ("Hello, world!", 4),
            ("one  two", 3),
            ("20260101", 3),
            ("a\n\nb", 3),
            ("deterministically", 3),
            ("你好世界", 2),
            ("x = y", 3),
        ] {
            assert_eq!(count(text), tokens, "{text:?}");
        }
    }

    #[test]
    fn prompts_share_the_blocks_of_their_common_beginning() {
        let tokens: Vec<u32> = (0..2_000).collect();
        let mut other = tokens.clone();
        other[1_100] = 7;
        let ids = |t: &[u32]| match prefix(t) {
            Prefix::Blocks { ids, .. } => ids,
            _ => unreachable!(),
        };
        let (a, b) = (ids(&tokens), ids(&other));
        assert_eq!((a.len(), &a[..2]), (4, &b[..2]));
        assert_ne!(a[2], b[2]);
        assert_ne!(a[3], b[3]);
    }

    #[test]
    fn a_stop_string_is_found_where_it_first_occurs() {
        let mut text = String::new();
        (0..200).for_each(|i| Answer(3).push(i, &mut text));
        let stop = text[120..131].to_string();
        let (tokens, bytes) = Answer(3).stop_at(std::slice::from_ref(&stop), 200).unwrap();
        assert_eq!(bytes, text.find(&stop).unwrap());
        let mut made = String::new();
        (0..tokens).for_each(|i| Answer(3).push(i, &mut made));
        assert!(made.contains(&stop) && made.len() < bytes + stop.len() + 12);
        assert_eq!(Answer(3).stop_at(&["#".into()], 200), None);
    }
}
