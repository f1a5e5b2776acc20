// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/meshd/meshd/internal/k3s"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// Files of a member on its host.
const (
	settingsPath = "/etc/etcd.json"
	dataDir      = "/var/lib/etcd"
	logPath      = "/var/log/etcd.log"
)

const (
	peerPort      = 2380
	clientAddress = "127.0.0.1:2379"
)

// settings returns a member's configuration file as k3s writes it: k3s's own timings, and over
// them the entries of etcd-arg. k3s has TLS between members, which is left out here.
func settings(name string, members map[string]netip.Addr, timings mesh.EtcdTimings) (string, error) {
	own := peerURL(members[name])
	var all []string
	for other, addr := range members {
		all = append(all, other+"="+peerURL(addr))
	}
	file := map[string]any{
		"name":                        name,
		"data-dir":                    dataDir,
		"listen-peer-urls":            own,
		"initial-advertise-peer-urls": own,
		"listen-client-urls":          "http://" + clientAddress,
		"advertise-client-urls":       "http://" + clientAddress,
		"initial-cluster":             strings.Join(all, ","),
		"snapshot-count":              10000,
		"heartbeat-interval":          500,
		"election-timeout":            5000,
		"log-outputs":                 []string{logPath},
		"log-level":                   "warn",
	}
	for _, arg := range k3s.EtcdArgs(timings) {
		key, value, _ := strings.Cut(arg, "=")
		number, err := strconv.Atoi(value)
		if err != nil {
			return "", fmt.Errorf("read etcd-arg %s: %w", arg, err)
		}
		file[key] = number
	}
	text, err := json.Marshal(file) // etcd takes YAML, and JSON is YAML
	return string(text), err
}

func peerURL(a netip.Addr) string {
	return "http://" + netip.AddrPortFrom(a, peerPort).String()
}

// walSegment is much less than etcd's 64 MB, which it fills with zeros: the disk is memory here.
const walSegment = 4 << 20

// serve runs a member of etcd in this process until it fails or the process is killed.
func serve(path string) error {
	wal.SegmentSizeBytes = walSegment
	config, err := embed.ConfigFromFile(path)
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	e, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	return <-e.Err()
}

// member is a member of etcd on a node.
type member struct {
	*lab.Node
	client *clientv3.Client

	mu     sync.Mutex
	since  time.Time // writes that began later count
	wrote  time.Time // when the first of them had succeeded; zero for none
	writes sync.WaitGroup
}

// start starts the member and makes a client of it. The member runs until its host is removed.
func (m *member) start(settings string) error {
	own, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	if err := errors.Join(m.WriteFile(settingsPath, settings, 0o644), m.WriteFile(logPath, "", 0o644)); err != nil {
		return err
	}
	process := m.Command(context.Background(), own, "-member", settingsPath)
	if err := process.Start(); err != nil {
		return fmt.Errorf("start etcd on %s: %w", m.Name, err)
	}
	go func() { _ = process.Wait() }() // the host is removed only when somebody has waited
	return m.connect()
}

// connect makes a client on the member's host, as the API server of k3s is one.
func (m *member) connect() (err error) {
	m.client, err = clientv3.New(clientv3.Config{
		Endpoints: []string{clientAddress},
		Logger:    zap.NewNop(), // it reports each write that failed
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return m.dial(ctx)
		})},
	})
	if err != nil {
		return fmt.Errorf("make client of etcd on %s: %w", m.Name, err)
	}
	return nil
}

func (m *member) dial(ctx context.Context) (conn net.Conn, err error) {
	err = m.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", clientAddress)
		return err
	})
	return conn, err
}

// status returns what the member says of itself.
func (m *member) status(ctx context.Context) (*clientv3.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := m.client.Status(ctx, clientAddress)
	if err != nil {
		return nil, fmt.Errorf("ask etcd on %s: %w", m.Name, err)
	}
	return s, nil
}

// activePeers returns to how many other members a member is connected, as its metrics say.
func (m *member) activePeers(ctx context.Context) (int, error) {
	body, err := m.metrics(ctx)
	if err != nil {
		return 0, err
	}
	peers := 0
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "etcd_network_active_peers{") && strings.HasSuffix(strings.TrimSpace(line), " 1") {
			peers++
		}
	}
	return peers, nil
}

// metrics reads the member's metrics.
func (m *member) metrics(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return m.dial(ctx) },
		DisableKeepAlives: true,
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+clientAddress+"/metrics", nil)
	if err != nil {
		return "", fmt.Errorf("ask etcd for metrics: %w", err)
	}
	answer, err := client.Do(request)
	if err != nil {
		return "", fmt.Errorf("ask etcd on %s for metrics: %w", m.Name, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return string(text), err
}

const (
	// writePeriod makes some ten writes a second on three members, as k3s does when little happens.
	writePeriod = 300 * time.Millisecond
	// requestTimeout bounds a request. A write that a lost leader has taken is never answered.
	requestTimeout = 5 * time.Second
)

// write begins one write per period until ctx ends, whatever becomes of those before.
func (m *member) write(ctx context.Context) {
	tick := time.NewTicker(writePeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			m.writes.Wait()
			return
		case <-tick.C:
			m.writes.Go(func() { m.put(ctx) })
		}
	}
}

func (m *member) put(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	began := time.Now()
	if _, err := m.client.Put(ctx, m.Name, "written"); err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wrote.IsZero() && began.After(m.since) {
		m.wrote = time.Now()
	}
}

// countWrites has only those writes count that begin from now on.
func (m *member) countWrites() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.since, m.wrote = time.Now(), time.Time{}
}

// firstWrite returns when the first write had succeeded that counts; zero if none has yet.
func (m *member) firstWrite() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wrote
}
