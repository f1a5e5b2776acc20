// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Error is an error in a file that a person wrote: where it is, what is wrong, and what to
// write instead. It never contains a secret.
type Error struct {
	File    string // as given to Load, Parse or ReadSecrets
	Line    int    // from 1; 0 if the file could not be read at all
	Key     string // for example cluster.pods[0]; "" if the line has none
	Problem string
	Advice  string // "" if none is needed

	// Transient means that the host may put it right by itself: its name can come by DHCP
	// or cloud-init after the start.
	Transient bool

	cause error
}

// Permanent reports whether an error of Load stays until a person mends a file.
func Permanent(err error) bool {
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	return slices.ContainsFunc(all, func(err error) bool {
		var bad *Error
		return errors.As(err, &bad) && !bad.Transient
	})
}

// Error returns file:line: key: problem: advice, without empty parts.
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

// Unwrap returns the operating system's error that is the cause, if there is one.
func (e *Error) Unwrap() error { return e.cause }

// wrong returns the error of a parse function. Its caller adds the file, line and key.
func wrong(problem, advice string) *Error { return &Error{Problem: problem, Advice: advice} }

// compareLines orders errors by line.
func compareLines(a, b *Error) int { return cmp.Compare(a.Line, b.Line) }

// maxQuoted is how many characters of a file's text an error shows at most.
const maxQuoted = 60

// quote quotes and shortens text of a file, so that the error stays on one line.
func quote(s string) string {
	if r := []rune(s); len(r) > maxQuoted {
		return fmt.Sprintf("%q…", string(r[:maxQuoted]))
	}
	return fmt.Sprintf("%q", s)
}
