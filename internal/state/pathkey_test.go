// SPDX-License-Identifier: Apache-2.0

package state_test

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/state"
)

func openPathKey(t *testing.T, path string, random io.Reader) *state.PathKey {
	t.Helper()
	k, err := state.OpenPathKey(path, random)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestPathKey kills the daemon again and again: an open key is never closed, so all that it
// leaves is what OpenPathKey wrote. A kill during OpenPathKey leaves the old file or the new
// one, and no counter was used.
func TestPathKey(t *testing.T) {
	path, random := filepath.Join(t.TempDir(), "run"), rand.NewChaCha8([32]byte{})
	first := openPathKey(t, path, random)
	highest := first.Counter()
	if highest == 0 {
		t.Error("the first counter is 0")
	}
	for start := range 20 {
		old := read(t, path, state.PathKeyFile)
		if start%3 == 0 { // killed during the write
			if err := os.WriteFile(filepath.Join(path, ".path.json.1.tmp"), old[:start], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		k := openPathKey(t, path, random)
		if !k.Private.Equal(first.Private) {
			t.Fatalf("start %d: got another key", start)
		}
		if start%4 == 0 { // killed before the write
			if err := os.WriteFile(filepath.Join(path, state.PathKeyFile), old, 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		for range 3 * start {
			c := k.Counter()
			if c <= highest {
				t.Fatalf("start %d: got counter %d after %d", start, c, highest)
			}
			highest = c
		}
	}
	info, err := os.Stat(filepath.Join(path, state.PathKeyFile))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("got mode %v, %v, want 0600", info.Mode(), err)
	}
	wantNames(t, path, state.PathKeyFile)
}

func TestPathKeyReplaced(t *testing.T) {
	path, random := t.TempDir(), rand.NewChaCha8([32]byte{})
	first := openPathKey(t, path, random)
	whole := string(read(t, path, state.PathKeyFile))
	tests := map[string]string{
		"newer":           strings.Replace(whole, `"version": 1`, `"version": 2`, 1),
		"short key":       `{"version": 1, "private-key": "AAAA", "reserved": 5}`,
		"no key":          `{"version": 1, "reserved": 5}`,
		"no reservation":  whole[:strings.LastIndex(whole, ",")] + "}",
		"counters are up": whole[:strings.LastIndex(whole, ":")] + fmt.Sprintf(": %d}", uint64(math.MaxUint64)),
	}
	for n := range strings.TrimSpace(whole) {
		tests[fmt.Sprintf("%d bytes", n)] = whole[:n]
	}
	for name, content := range tests {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(path, state.PathKeyFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			k := openPathKey(t, path, random)
			if k.Private.Equal(first.Private) {
				t.Error("got the old key, of which it is unknown what was used")
			}
			if again := openPathKey(t, path, random); !again.Private.Equal(k.Private) {
				t.Error("the new key is not kept")
			}
		})
	}
}

// TestPathKeyNotKept has a full disk: the key in the file can't be used without a
// reservation, but is there again later.
func TestPathKeyNotKept(t *testing.T) {
	path, random := smallDisk(t), rand.NewChaCha8([32]byte{})
	kept := openPathKey(t, path, random)
	highest := kept.Counter()
	ballast := fillDisk(t, path)

	k, err := state.OpenPathKey(path, random)
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("got %v, want %v", err, unix.ENOSPC)
	}
	if k.Private.Equal(kept.Private) {
		t.Error("got the key whose counters are not reserved")
	}
	if k.Counter() == 0 {
		t.Error("the first counter is 0")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	again := openPathKey(t, path, random)
	if c := again.Counter(); !again.Private.Equal(kept.Private) || c <= highest {
		t.Errorf("with room: got counter %d, or another key, want the key that was kept and more than %d", c, highest)
	}
}

func TestPathKeyWithoutRandom(t *testing.T) {
	want := errors.New("no entropy")
	if k, err := state.OpenPathKey(t.TempDir(), iotest.ErrReader(want)); k != nil || !errors.Is(err, want) {
		t.Errorf("got %v, %v, want no key and %v", k, err, want)
	}
}
