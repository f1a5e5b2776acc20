// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxHost is the longest host name (RFC 1035, section 2.3.4, in text form).
const MaxHost = 253

// ValidText reports whether a string from another node may be shown to a person: valid
// UTF-8 of at most limit bytes, and printable. unicode.IsPrint rejects control characters
// (escapes, line breaks), those that change the direction of text (U+202A to U+202E,
// U+2066 to U+2069), and U+2028 and U+2029, which end lines; the only space that it
// accepts is the ASCII one.
func ValidText(s string, limit int) bool {
	return len(s) <= limit && utf8.ValidString(s) &&
		strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// Some lists texts for a person: the first of them, and how many more there are.
func Some(texts []string, most int) string {
	if more := len(texts) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(texts[:most], ", "), more)
	}
	return strings.Join(texts, ", ")
}

// CheckName returns why a string can't be the name of a node or a client, or nil if it can: a
// host name of at most MaxName bytes, also of several labels, that tells one host from another.
func CheckName(s string) error {
	if len(s) > MaxName || !ValidHostName(s) {
		return fmt.Errorf("%q is not a host name of at most %d characters", s, MaxName)
	}
	if first, _, _ := strings.Cut(strings.ToLower(s), "."); first == "localhost" {
		return fmt.Errorf("%s names every host", s)
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return fmt.Errorf("%s is an address", s)
	}
	return nil
}

// ValidHostName reports whether a string is a host name (RFC 1123, plus the underscores
// that many resolvers accept), without a dot at its end.
func ValidHostName(s string) bool {
	if s == "" || len(s) > MaxHost || strings.Trim(s, "-.") != s {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}

// ValidHost reports whether packets can be sent to a string: a host name, or the address
// of one host. A name whose last label has only digits is refused, because only some
// resolvers take it as an address, such as 127.1.
func ValidHost(s string) bool {
	if a, err := netip.ParseAddr(s); err == nil {
		return CheckHost(a) == nil
	}
	s = strings.TrimSuffix(s, ".")
	last := s[strings.LastIndexByte(s, '.')+1:]
	return ValidHostName(s) && strings.Trim(last, "0123456789") != ""
}

// Printable returns a string that ValidText accepts: what is not printable is escaped as
// in Go, \x1b, and what is too long is cut. It is for texts that quote others, such as
// errors.
func Printable(s string, limit int) string {
	if ValidText(s, limit) {
		return s
	}
	const cut = "…"
	var b strings.Builder
	for i, r := range s {
		part := s[i : i+1] // one byte, if it is invalid UTF-8
		if r != utf8.RuneError || strings.HasPrefix(s[i:], string(utf8.RuneError)) {
			part = string(r)
		}
		if !ValidText(part, len(part)) {
			quoted := fmt.Sprintf("%+q", part)
			part = quoted[1 : len(quoted)-1]
		}
		if b.Len()+len(part) > limit-len(cut) {
			return b.String() + cut
		}
		b.WriteString(part)
	}
	return b.String()
}

// MaxText is the maximum length of a problem's texts, in bytes.
const MaxText = 2000

// Printable returns the problem with printable texts, whatever they quote from other
// nodes.
func (p Problem) Printable() Problem {
	p.Node, p.Text, p.Advice = Printable(p.Node, MaxHost), Printable(p.Text, MaxText), Printable(p.Advice, MaxText)
	return p
}
