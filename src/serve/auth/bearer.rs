//! Bearer tokens.

use subtle::{Choice, ConstantTimeEq as _};

use super::lines;
use crate::store::sha256;

/// A token has at least so many characters: fewer can be guessed.
const SHORTEST: usize = 16;

/// Digests of the tokens. These have one length, and a dump of the memory does not show a token.
pub(super) struct Tokens(Vec<String>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({})", self.0.len())
    }
}

impl Tokens {
    /// One a line.
    pub(super) fn parse(text: &str) -> Result<Tokens, String> {
        let mut tokens = Vec::new();
        for (number, token) in lines(text) {
            if !token.chars().all(|c| c.is_ascii_graphic()) {
                return Err(format!("line {number}: a token has letters, digits and signs only"));
            }
            if token.len() < SHORTEST {
                return Err(format!("line {number}: a token has at least {SHORTEST} characters"));
            }
            tokens.push(sha256(token.as_bytes()));
        }
        match tokens.is_empty() {
            true => Err("there is no token in it".to_owned()),
            false => Ok(Tokens(tokens)),
        }
    }

    /// Whether it is one of them; all are looked at, whichever it is.
    pub(super) fn contain(&self, token: &str) -> bool {
        let token = sha256(token.as_bytes());
        let none = Choice::from(0);
        self.0.iter().fold(none, |found, one| found | one.as_bytes().ct_eq(token.as_bytes())).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_lines_without_comments() {
        let text = "# ours\n\n  abcdefghijklmnop  \nqrstuvwxyz0123456\n";
        let tokens = Tokens::parse(text).unwrap();
        assert!(tokens.contain("abcdefghijklmnop") && tokens.contain("qrstuvwxyz0123456"));
        for other in ["", "abcdefghijklmno", "abcdefghijklmnopq", "# ours", "ABCDEFGHIJKLMNOP"] {
            assert!(!tokens.contain(other), "{other}");
        }
        assert!(!format!("{tokens:?}").contains("abc"));
    }

    #[test]
    fn files_that_protect_nothing_are_refused() {
        for (text, why) in [
            ("", "no token"),
            ("#a\n", "no token"),
            ("\nshort\n", "line 2"),
            ("a b c d e f g h i j k", "line 1"),
        ] {
            let error = Tokens::parse(text).unwrap_err();
            assert!(error.contains(why) && !error.contains("short"), "{error}");
        }
    }
}
