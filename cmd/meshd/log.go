// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/journal"
)

// newLogger returns a logger that writes to w. In the journal each line has a priority, and
// no time, because the journal adds its own.
func newLogger(w io.Writer, verbose bool) *slog.Logger {
	opts := &slog.HandlerOptions{Level: slog.LevelInfo}
	if verbose {
		opts.Level = slog.LevelDebug
	}
	if w == os.Stderr && stderrIsJournal() {
		return slog.New(newJournalHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// stderrIsJournal reports whether the journal reads what is written to stderr. A program
// that was started by a unit inherits JOURNAL_STREAM even if its output goes elsewhere, so
// the variable alone says nothing, see systemd.exec(5).
func stderrIsJournal() bool {
	is, err := journal.StderrIsJournalStream()
	return err == nil && is
}

// journalHandler writes lines as text, each with its syslog priority in front, as
// sd-daemon(3) has it.
type journalHandler struct {
	slog.Handler
	out *priorityWriter
}

// priorityWriter writes one line at a time, after the priority.
type priorityWriter struct {
	w io.Writer

	mu       sync.Mutex // held while a record is handled
	priority int
}

func newJournalHandler(w io.Writer, opts *slog.HandlerOptions) journalHandler {
	opts.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	out := &priorityWriter{w: w}
	return journalHandler{slog.NewTextHandler(out, opts), out}
}

// Handle implements slog.Handler.
func (h journalHandler) Handle(ctx context.Context, r slog.Record) error {
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	h.out.priority = priorityOf(r.Level)
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return journalHandler{h.Handler.WithAttrs(attrs), h.out}
}

// WithGroup implements slog.Handler.
func (h journalHandler) WithGroup(name string) slog.Handler {
	return journalHandler{h.Handler.WithGroup(name), h.out}
}

// Write implements io.Writer. The text handler calls it once for each record, which it has
// written as one line.
func (p *priorityWriter) Write(line []byte) (int, error) {
	if _, err := p.w.Write(append(fmt.Appendf(nil, "<%d>", p.priority), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}

// Priorities of syslog(3).
const (
	priorityError   = 3
	priorityWarning = 4
	priorityInfo    = 6
	priorityDebug   = 7
)

func priorityOf(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return priorityError
	case l >= slog.LevelWarn:
		return priorityWarning
	case l >= slog.LevelInfo:
		return priorityInfo
	default:
		return priorityDebug
	}
}

// printError writes why a command has failed. The journal takes each line for an entry of its
// own, so each has the priority.
func printError(w io.Writer, text string, toJournal bool) {
	var b bytes.Buffer
	for line := range strings.Lines(text + "\n") {
		if toJournal {
			fmt.Fprintf(&b, "<%d>", priorityError)
		}
		b.WriteString(line)
	}
	_, _ = w.Write(b.Bytes()) // there is nowhere else to say it
}
