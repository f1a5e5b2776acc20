// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"fmt"
	"strings"
)

// Error is something wrong in a file that a person wrote: where, what, and
// what to write instead. It never holds a secret.
type Error struct {
	File    string // as it was given to Load, Parse or ReadSecrets
	Line    int    // 1 is the first; 0 if the file could not be read at all
	Key     string // cluster.pods[0]; "" if the line has none
	Problem string
	Advice  string // "" if the problem says it all

	cause error
}

// Error returns file:line: key: problem: advice, without the parts that are
// not there.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	for _, part := range []string{e.Key, e.Problem, e.Advice} {
		if part != "" {
			b.WriteString(": " + part)
		}
	}
	return b.String()
}

// Unwrap returns the error of the operating system behind this one, if any.
func (e *Error) Unwrap() error { return e.cause }

// wrong is the error of a parse function, which knows no place.
func wrong(problem, advice string) *Error { return &Error{Problem: problem, Advice: advice} }

// compareLines orders errors as their lines stand in the file.
func compareLines(a, b *Error) int { return cmp.Compare(a.Line, b.Line) }

// maxQuoted is how many characters of foreign text an error shows.
const maxQuoted = 60

// quote makes foreign text fit for one line of an error.
func quote(s string) string {
	if r := []rune(s); len(r) > maxQuoted {
		return fmt.Sprintf("%q…", string(r[:maxQuoted]))
	}
	return fmt.Sprintf("%q", s)
}
