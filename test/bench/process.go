// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/meshd/meshd/internal/wait"
	"github.com/meshd/meshd/test/lab"
)

const (
	calmTime = 15 * time.Second // from the start until joining and its follow-ups are over
	idleTime = 30 * time.Second
)

// measureIdle measures an idle mesh. Memory and CPU time are those of the daemon with the
// highest values; bytes are the mean over the nodes' underlay links.
func measureIdle(ctx context.Context, nodes []*lab.Node, s samples) error {
	if err := wait.Sleep(ctx, calmTime); err != nil {
		return err
	}
	before, err := readAll(nodes)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := wait.Sleep(ctx, idleTime); err != nil {
		return err
	}
	after, err := readAll(nodes)
	if err != nil {
		return err
	}
	seconds := time.Since(began).Seconds()

	var rss, cpu, received, sent float64
	for i := range nodes {
		rss = max(rss, after[i].rss)
		cpu = max(cpu, after[i].cpu-before[i].cpu)
		received += after[i].received - before[i].received
		sent += after[i].sent - before[i].sent
	}
	perNode := seconds * float64(len(nodes))
	s.add("rss_mb", rss/1e6)
	s.add("idle_cpu_percent", 100*cpu/seconds)
	s.add("idle_bytes_per_s", (received+sent)/perNode)
	s.add("idle_received_bytes_per_s", received/perNode)
	s.add("idle_sent_bytes_per_s", sent/perNode)
	return nil
}

// usage is what a daemon and its host's link have used so far.
type usage struct {
	rss            float64 // bytes
	cpu            float64 // seconds
	received, sent float64 // bytes
}

func readAll(nodes []*lab.Node) ([]usage, error) {
	all := make([]usage, len(nodes))
	for i, n := range nodes {
		u, err := readUsage(n.PID())
		if err != nil {
			return nil, fmt.Errorf("read usage of %s: %w", n.Name, err)
		}
		all[i] = u
	}
	return all, nil
}

// ticks are USER_HZ, which is 100 on every architecture that Go runs on.
const ticks = 100

// readUsage reads a process and the network that it is in; see proc(5).
func readUsage(pid int) (usage, error) {
	var u usage
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	// The second field is a name in parentheses; utime and stime are 14 and 15.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	status, err := lineOf(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:")
	if err != nil {
		return u, err
	}
	link, err := lineOf(fmt.Sprintf("/proc/%d/net/dev", pid), lab.HostLink+":")
	if err != nil {
		return u, err
	}
	var utime, stime, kilobytes float64
	_, err = fmt.Sscan(strings.Join([]string{f[11], f[12], status[0], link[0], link[8]}, " "),
		&utime, &stime, &kilobytes, &u.received, &u.sent)
	u.cpu, u.rss = (utime+stime)/ticks, kilobytes*1024
	return u, err
}

// lineOf returns the fields of the line whose first field is name.
func lineOf(path, name string) ([]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			return f[1:], nil
		}
	}
	return nil, errors.New("no " + name + " in " + path)
}
