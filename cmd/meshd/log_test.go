// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestJournalPriorities(t *testing.T) {
	var b strings.Builder
	log := slog.New(newJournalHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", "a1").WithGroup("g")
	log.Debug("detail", "a", 1)
	log.Info("news", "a", "two\nlines")
	log.Warn("problem", "a", 1)
	log.Error("error", "a", 1)
	want := `<7>level=DEBUG msg=detail node=a1 g.a=1
<6>level=INFO msg=news node=a1 g.a="two\nlines"
<4>level=WARN msg=problem node=a1 g.a=1
<3>level=ERROR msg=error node=a1 g.a=1
`
	if got := b.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// A command's stderr counts as the journal only if JOURNAL_STREAM names it.
func TestErrorInJournal(t *testing.T) {
	for name, test := range map[string]struct {
		stream func(*syscall.Stat_t) string
		want   string // before each line
	}{
		"journal":        {func(s *syscall.Stat_t) string { return fmt.Sprintf("%d:%d", s.Dev, s.Ino) }, "<3>"},
		"elsewhere":      {func(s *syscall.Stat_t) string { return fmt.Sprintf("%d:%d", s.Dev, s.Ino+1) }, ""},
		"not a number":   {func(*syscall.Stat_t) string { return "x" }, ""},
		"not by systemd": {func(*syscall.Stat_t) string { return "" }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			stderr, err := os.Create(filepath.Join(dir, "stderr"))
			if err != nil {
				t.Fatal(err)
			}
			defer stderr.Close()
			var s syscall.Stat_t
			if err := syscall.Fstat(int(stderr.Fd()), &s); err != nil {
				t.Fatal(err)
			}
			config := filepath.Join(dir, "meshd.yaml")
			if err := os.WriteFile(config, []byte("nod: 1\njoi: 2\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("meshd", "run", "--config", config)
			cmd.Env = append(os.Environ(), "JOURNAL_STREAM="+test.stream(&s))
			cmd.Stderr = stderr
			var exit *exec.ExitError
			if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != exitUsage {
				t.Fatalf("meshd run: got %v, want exit code %d", err, exitUsage)
			}
			text, err := os.ReadFile(stderr.Name())
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
			if len(lines) < 2 || !strings.HasPrefix(lines[0], test.want+"meshd: ") {
				t.Errorf("got %q, want two lines, the first beginning with %q", lines, test.want+"meshd: ")
			}
			for _, l := range lines {
				if strings.HasPrefix(l, "<") != (test.want != "") || !strings.HasPrefix(l, test.want) {
					t.Errorf("line %q: want %q before it", l, test.want)
				}
			}
		})
	}
}
