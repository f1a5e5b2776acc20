// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// machine is what a demo could leave behind on the machine that it runs on.
func machine(t *testing.T) map[string]string {
	t.Helper()
	state := map[string]string{}
	for _, command := range []string{"ip -br link", "ip -br address", "ip rule", "nft -s list ruleset"} {
		words := strings.Fields(command)
		out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
		state[command] = string(out)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	state["mounts"] = string(mounts)
	for _, dir := range []string{"/run/netns", "/run/meshd", "/etc/cni", "/etc/meshd", "/opt/cni", "/var/lib/cni", "/var/lib/meshd"} {
		state[dir] = files(t, dir)
	}
	return state
}

// files lists what is below a directory, with what changes when it is written to.
func files(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			all = append(all, fmt.Sprintf("%s %v %d %v\n", path, info.Mode(), info.Size(), info.ModTime()))
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	slices.Sort(all)
	return strings.Join(all, "")
}

// leavesNothing checks, when the test ends, that the machine is as it was.
func leavesNothing(t *testing.T) {
	t.Helper()
	before := machine(t)
	t.Cleanup(func() {
		if diff := cmp.Diff(before, machine(t)); diff != "" {
			t.Errorf("the machine after the demo (-before +after):\n%s", diff)
		}
	})
}
