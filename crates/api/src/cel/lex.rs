//! CEL's text as tokens.

use super::CompileError;

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// A name or keyword.
    Name(String),
    /// A field's name between backticks.
    Quoted(String),
    /// A whole number without its sign: up to 2⁶³.
    Int(u64),
    Uint(u64),
    Double(f64),
    String(String),
    Bytes(Vec<u8>),
    /// An operator or bracket.
    Mark(&'static str),
    End,
}

/// The marks; a longer one stands before those that begin it.
const MARKS: [&str; 26] = [
    "&&", "||", "==", "!=", "<=", ">=", "?", ":", "<", ">", "!", "+", "-", "*", "/", "%", "(", ")", "[", "]", "{", "}",
    ".", ",", "=", ";",
];

/// The tokens of a text, each with where it begins (in characters); the last one is [`Token::End`].
pub fn tokens(text: &str) -> Result<Vec<(Token, usize)>, CompileError> {
    let chars: Vec<char> = text.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0 };
    let mut all = Vec::new();
    loop {
        lexer.skip();
        let start = lexer.at;
        let token = lexer.token().map_err(|why| CompileError::new(start, format!("Syntax error: {why}")))?;
        let is_end = token == Token::End;
        all.push((token, start));
        if is_end {
            return Ok(all);
        }
    }
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
}

fn unknown(text: impl std::fmt::Display) -> String {
    format!("token recognition error at: '{text}'")
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn take_while(&mut self, fits: impl Fn(char) -> bool) -> String {
        let start = self.at;
        while self.peek(0).is_some_and(&fits) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn starts_with(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(index, c)| self.peek(index) == Some(c))
    }

    /// White space and comments.
    fn skip(&mut self) {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{c}'));
            if !self.starts_with("//") {
                return;
            }
            self.take_while(|c| c != '\n');
        }
    }

    fn token(&mut self) -> Result<Token, String> {
        let Some(first) = self.peek(0) else { return Ok(Token::End) };
        if let Some(prefix) = self.string_prefix() {
            return self.string(prefix);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            return Ok(Token::Name(self.take_while(|c| c.is_ascii_alphanumeric() || c == '_')));
        }
        if first == '`' {
            self.at += 1;
            let name = self.take_while(|c| c.is_ascii_alphanumeric() || "_.-/ ".contains(c));
            if name.is_empty() || self.peek(0) != Some('`') {
                return Err(unknown(format_args!("`{name}")));
            }
            self.at += 1;
            return Ok(Token::Quoted(name));
        }
        if first.is_ascii_digit() || (first == '.' && self.peek(1).is_some_and(|c| c.is_ascii_digit())) {
            return self.number();
        }
        match MARKS.into_iter().find(|mark| self.starts_with(mark)) {
            Some(mark) if !matches!(mark, "=" | ";") => {
                self.at += mark.len();
                Ok(Token::Mark(mark))
            }
            _ => Err(unknown(first)),
        }
    }

    fn number(&mut self) -> Result<Token, String> {
        if self.starts_with("0x") || self.starts_with("0X") {
            self.at += 2;
            let digits = self.take_while(|c| c.is_ascii_hexdigit());
            let number = u64::from_str_radix(&digits, 16).map_err(|_| "invalid int literal".to_owned())?;
            return Ok(self.whole(number));
        }
        let mut text = self.take_while(|c| c.is_ascii_digit());
        let mut is_whole = true;
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
            text = format!("{text}.{}", self.take_while(|c| c.is_ascii_digit()));
            is_whole = false;
        }
        let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
        if matches!(self.peek(0), Some('e' | 'E')) && self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit()) {
            text.push('e');
            self.at += 1;
            text.extend((sign == 1).then(|| self.peek(0)).flatten());
            self.at += sign;
            text.push_str(&self.take_while(|c| c.is_ascii_digit()));
            is_whole = false;
        }
        if is_whole {
            let number = text.parse().map_err(|_| "invalid int literal".to_owned())?;
            return Ok(self.whole(number));
        }
        text.parse().map(Token::Double).map_err(|_| "invalid double literal".to_owned())
    }

    fn whole(&mut self, number: u64) -> Token {
        if matches!(self.peek(0), Some('u' | 'U')) {
            self.at += 1;
            return Token::Uint(number);
        }
        Token::Int(number)
    }

    /// How many characters stand before a string's quote; none where no string begins.
    fn string_prefix(&self) -> Option<usize> {
        (0..3).find(|length| {
            let is_prefix = (0..*length).all(|index| matches!(self.peek(index), Some('r' | 'R' | 'b' | 'B')));
            is_prefix && matches!(self.peek(*length), Some('"' | '\''))
        })
    }

    fn string(&mut self, prefix: usize) -> Result<Token, String> {
        let has =
            |lower: char| (0..prefix).any(|index| self.peek(index).is_some_and(|c| c.eq_ignore_ascii_case(&lower)));
        let (is_raw, is_bytes) = (has('r'), has('b'));
        self.at += prefix;
        let quote = self.peek(0).unwrap_or('"');
        let long: String = std::iter::repeat_n(quote, 3).collect();
        let is_long = self.starts_with(&long);
        let close = if is_long { long } else { quote.to_string() };
        self.at += close.len();
        let mut bytes: Vec<u8> = Vec::new();
        while !self.starts_with(&close) {
            let c = self.peek(0).filter(|c| is_long || !matches!(c, '\n' | '\r'));
            let c = c.ok_or_else(|| unknown(quote))?;
            self.at += 1;
            if c == '\\' && !is_raw {
                self.escape(is_bytes, &mut bytes)?;
            } else {
                bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        self.at += close.len();
        if is_bytes {
            return Ok(Token::Bytes(bytes));
        }
        String::from_utf8(bytes).map(Token::String).map_err(|_| "invalid unicode code point".to_owned())
    }

    fn escape(&mut self, is_bytes: bool, out: &mut Vec<u8>) -> Result<(), String> {
        let c = self.peek(0).ok_or("unable to unescape string")?;
        self.at += 1;
        let simple = match c {
            'a' => Some('\u{7}'),
            'b' => Some('\u{8}'),
            'f' => Some('\u{c}'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'v' => Some('\u{b}'),
            '\\' | '\'' | '"' | '`' | '?' => Some(c),
            _ => None,
        };
        if let Some(simple) = simple {
            out.extend(simple.encode_utf8(&mut [0; 4]).as_bytes());
            return Ok(());
        }
        let (count, radix) = match c {
            'x' | 'X' => (2, 16),
            'u' => (4, 16),
            'U' => (8, 16),
            '0'..='3' => (3, 8),
            _ => return Err("unable to unescape string".to_owned()),
        };
        if radix == 8 {
            self.at -= 1;
        }
        let digits: String = self.chars.iter().skip(self.at).take(count).collect();
        let code = u32::from_str_radix(&digits, radix).ok().filter(|_| digits.chars().count() == count);
        let code = code.ok_or("unable to unescape string")?;
        self.at += count;
        if is_bytes && matches!(c, 'x' | 'X' | '0'..='3') {
            out.push(u8::try_from(code).map_err(|_| "unable to unescape string")?);
        } else {
            let c = char::from_u32(code).ok_or("invalid unicode code point")?;
            out.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Ok(())
    }
}
