// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"testing"

	"pgregory.net/rapid"
)

func TestPrintable(t *testing.T) {
	tests := []struct{ text, want string }{
		{"plain", "plain"},
		{"Zürich", "Zürich"},
		{`"quoted" \ 'so'`, `"quoted" \ 'so'`},
		{"a\x1b[31m", `a\x1b[31m`},
		{"a\nb", `a\nb`},
		{"a\u202eb", `a\u202eb`},
		{"a\xffb", `a\xffb`},
		{"a\ufffdb", "a\ufffdb"},
		{"0123456789012345678901234567890123456789", "0123456789012345678901234567…"},
	}
	for _, tt := range tests {
		if got := Printable(tt.text, 31); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.text, got, tt.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s, limit := rapid.String().Draw(t, "text"), rapid.IntRange(3, 100).Draw(t, "limit")
		if b := rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"); len(b) > 0 {
			s += string(b)
		}
		if got := Printable(s, limit); !ValidText(got, limit) {
			t.Fatalf("%q at %d: got %q", s, limit, got)
		}
	})
}

func TestSome(t *testing.T) {
	all := []string{"a", "b", "c"}
	for most, want := range map[int]string{1: "a and 2 more", 2: "a, b and 1 more", 3: "a, b, c", 4: "a, b, c"} {
		if got := Some(all, most); got != want {
			t.Errorf("at most %d: got %q, want %q", most, got, want)
		}
	}
	if got := Some(nil, 1); got != "" {
		t.Errorf("of none: got %q", got)
	}
}
