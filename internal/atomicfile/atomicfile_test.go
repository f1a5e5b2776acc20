// SPDX-License-Identifier: Apache-2.0

package atomicfile_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/atomicfile"
)

func TestWrite(t *testing.T) {
	tests := []struct {
		name string
		old  []byte // nil for no file
		data []byte
		mode os.FileMode
	}{
		{name: "new", data: []byte("new\n"), mode: 0o600},
		{name: "empty", data: []byte{}, mode: 0o644},
		{name: "replaces a longer file", old: bytes.Repeat([]byte("old"), 100), data: []byte("new\n"), mode: 0o640},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			if tt.old != nil {
				if err := os.WriteFile(path, tt.old, 0o666); err != nil {
					t.Fatal(err)
				}
			}
			if err := atomicfile.Write(path, tt.data, tt.mode); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.data, got); diff != "" {
				t.Errorf("content (-want +got):\n%s", diff)
			}
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode() != tt.mode {
				t.Errorf("got mode %v, want %v", info.Mode(), tt.mode)
			}
			wantNames(t, filepath.Dir(path), "file")
		})
	}
}

func TestWriteIgnoresUmask(t *testing.T) {
	// Threads share the umask. Unshare it for this thread (CLONE_FS), so that other tests
	// keep theirs.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		t.Fatal(err)
	}
	syscall.Umask(0o077)
	path := filepath.Join(t.TempDir(), "file")
	if err := atomicfile.Write(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := info.Mode(), os.FileMode(0o644); got != want {
		t.Errorf("got mode %v, want %v", got, want)
	}
}

func TestWriteError(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	if err := os.MkdirAll(filepath.Join(target, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(target, []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	wantNames(t, dir, "target")

	err := atomicfile.Write(filepath.Join(dir, "missing", "file"), nil, 0o600)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want %v", err, os.ErrNotExist)
	}
}

// After an error because of a full disk, the old file is still there.
func TestWriteDiskFull(t *testing.T) {
	// Use a mount namespace of this thread. The thread is never unlocked, so it ends with the
	// test, and the namespace with it.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()

	path := filepath.Join(dir, "file")
	if err := atomicfile.Write(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := atomicfile.Write(path, make([]byte, 128<<10), 0o600)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want %v", err, unix.ENOSPC)
	}
	// The error must not contain the random name of the temporary file.
	if want := "write " + path + ": write: no space left on device"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != "old" {
		t.Errorf("got %q, want the old content", got)
	}
	wantNames(t, dir, "file")
}

func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{".file.2.tmp", ".file.1.tmp", ".other.1.tmp", "file", ".file.swp"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := atomicfile.Leftovers(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(dir, ".file.1.tmp"), filepath.Join(dir, ".file.2.tmp")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("leftovers (-want +got):\n%s", diff)
	}

	got, err = atomicfile.Leftovers(filepath.Join(dir, "missing", "file"))
	if err != nil || got != nil {
		t.Errorf("missing directory: got %q, %v, want none", got, err)
	}
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}
