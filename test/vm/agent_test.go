// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"
)

// agent speaks the protocol of qemu-guest-agent, see its reference manual.
type agent struct {
	conn net.Conn
	r    *bufio.Reader
}

// execute runs a bash script in the machine. It waits for a machine that is still
// starting.
func execute(ctx context.Context, socket, script string) (stdout string, err error) {
	a, err := dialAgent(ctx, socket)
	if err != nil {
		return "", err
	}
	defer a.conn.Close()
	var started struct{ PID int }
	err = a.call("guest-exec", map[string]any{"path": "/bin/bash", "arg": []string{"-c", script}, "capture-output": true}, &started)
	if err != nil {
		return "", err
	}
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		var status struct {
			Exited   bool
			ExitCode int
			Signal   int
			OutData  []byte `json:"out-data"` // in base64
			ErrData  []byte `json:"err-data"`
		}
		if err := a.call("guest-exec-status", map[string]any{"pid": started.PID}, &status); err != nil {
			return "", err
		}
		if status.Exited {
			if status.ExitCode != 0 || status.Signal != 0 {
				return string(status.OutData), fmt.Errorf("exit code %d, signal %d: %s%s", status.ExitCode, status.Signal, status.OutData, status.ErrData)
			}
			return string(status.OutData), nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("wait for end: %w", ctx.Err())
		case <-time.After(pause):
		}
	}
}

// How long a running agent takes to answer. One that a reboot has just killed never does.
const (
	syncTimeout = 5 * time.Second
	callTimeout = time.Minute
)

// dialAgent connects to the agent and discards answers to earlier requests.
func dialAgent(ctx context.Context, socket string) (*agent, error) {
	for {
		a, err := tryAgent(socket)
		if err == nil {
			return a, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("reach guest agent: %w: %w", ctx.Err(), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func tryAgent(socket string) (*agent, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	a := &agent{conn, bufio.NewReader(conn)}
	if err := a.sync(); err != nil {
		conn.Close()
		return nil, err
	}
	return a, nil
}

// sync sends a number of its own, and reads until the answer with that number.
// The byte 0xff makes the agent discard an incomplete earlier request.
func (a *agent) sync() error {
	if err := a.conn.SetDeadline(time.Now().Add(syncTimeout)); err != nil {
		return err
	}
	want := rand.Int64N(1 << 31)
	if _, err := fmt.Fprintf(a.conn, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%d}}\n", want); err != nil {
		return err
	}
	for {
		line, err := a.r.ReadBytes('\n')
		if err != nil {
			return err
		}
		var answer struct{ Return any }
		line = line[bytes.LastIndexByte(line, 0xff)+1:]
		if json.Unmarshal(line, &answer) == nil && answer.Return == float64(want) {
			return nil
		}
	}
}

// call makes one request.
func (a *agent) call(name string, arguments map[string]any, result any) error {
	request, err := json.Marshal(map[string]any{"execute": name, "arguments": arguments})
	if err != nil {
		return fmt.Errorf("write request: %w", err)
	}
	err = a.conn.SetDeadline(time.Now().Add(callTimeout))
	if err == nil {
		_, err = a.conn.Write(append(request, '\n'))
	}
	if err != nil {
		return fmt.Errorf("call %s: %w", name, err)
	}
	line, err := a.r.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("call %s: %w", name, err)
	}
	var answer struct {
		Return json.RawMessage
		Error  *struct{ Desc string }
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return fmt.Errorf("call %s: %w", name, err)
	}
	if answer.Error != nil {
		return fmt.Errorf("call %s: %w", name, errors.New(answer.Error.Desc))
	}
	return json.Unmarshal(answer.Return, result)
}
