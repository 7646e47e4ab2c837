//! Where in a JSON text the answer is, as far as bytes tell, and what every reader of JSON takes.

/// Deepest nesting; readers of JSON refuse more than about 100.
const DEEPEST: u16 = 64;
/// Most digits before and after the point: integers of so many digits are exact in 64-bit floats, and a model that
/// only writes digits comes to an end.
const MOST_DIGITS: u16 = 15;

/// The place in the JSON text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Json {
    /// Inside the quotation marks of a string.
    pub in_string: bool,
    escaped: bool,
    depth: u16,
    /// Digits of the number that is being written, since its beginning or its point.
    digits: u16,
}

impl Json {
    /// Moves over one byte; false when it makes the text one that some readers refuse: nested too deeply, a number
    /// with too many digits or with an exponent (`1e999` is JSON that many cannot read).
    pub fn push(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return true;
        }
        let digits = std::mem::take(&mut self.digits);
        match byte {
            b'0'..=b'9' => {
                self.digits = digits.saturating_add(1);
                self.digits <= MOST_DIGITS
            }
            b'e' | b'E' => digits == 0,
            b'"' => {
                self.in_string = true;
                true
            }
            b'{' | b'[' => {
                self.depth = self.depth.saturating_add(1);
                self.depth <= DEEPEST
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                true
            }
            _ => true,
        }
    }

    /// Moves over all of `bytes`; false if one of them is refused.
    pub fn push_all(&mut self, bytes: &[u8]) -> bool {
        let mut taken = true;
        for byte in bytes {
            taken &= self.push(*byte);
        }
        taken
    }

    /// Whether bytes may follow; `quote` says whether there is a quotation mark among them. Mostly that is enough to know.
    pub fn allows<'a>(mut self, quote: bool, bytes: impl FnOnce() -> &'a [u8]) -> bool {
        (self.in_string && !quote) || self.push_all(bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(before: &str, bytes: &str) -> bool {
        let mut json = Json::default();
        json.push_all(before.as_bytes());
        json.allows(bytes.contains('"'), || bytes.as_bytes())
    }

    #[test]
    fn long_numbers_exponents_and_deep_nesting_are_refused() {
        assert!(allows("[12345678901234", "5]"));
        assert!(!allows("[123456789012345", "6"));
        assert!(allows("[123456789012345.12345678901234", "5, 1"));
        assert!(!allows("[0.123456789012345", "6"));
        assert!(!allows("[1", "e5") && !allows("[1.0", "E"));
        assert!(allows("", &"[".repeat(64)) && !allows(&"[".repeat(64), "["));
    }

    #[test]
    fn text_in_strings_is_free() {
        assert!(allows("{\"1e", "1e9999[[[[") && allows("[tru", "e, fals"));
        assert!(allows("{\"1\\\"", "1e5") && !allows("{\"1\": 1", "e5"));
    }
}
