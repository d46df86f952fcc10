# A small HTTP server on descriptor 3 with Erlang's `gen_tcp`, a process for each connection.
# SIGTERM: accept no more, finish, leave.
#
# Variables for tests: START_DELAY=SECONDS makes it slow to start; if BROKEN=FILE exists, it cannot
# start; IN_FLIGHT=FILE is written when /slow is being answered; with LINGER=SECONDS, it announces
# closes for that long before it closes.

defmodule Stop do
  @behaviour :gen_event

  # The runtime's own handler of SIGTERM waits for no request.
  def install(server), do: :gen_event.swap_handler(:erl_signal_server, {:erl_signal_handler, []}, {Stop, server})

  def init({server, _}), do: {:ok, server}

  def handle_event(:sigterm, server) do
    send(server, :stop)
    {:ok, server}
  end

  def handle_event(_, server), do: {:ok, server}
  def handle_call(_, server), do: {:ok, :ok, server}
end

defmodule Server do
  def serve(listener) do
    counter = :counters.new(1, [])
    acceptor = spawn_link(fn -> accept(listener, counter) end)
    receive do: (:stop -> :ok)
    linger = String.to_integer(System.get_env("LINGER", "0"))
    :persistent_term.put(:draining, linger > 0)
    Process.sleep(1000 * linger)
    Process.unlink(acceptor)
    Process.exit(acceptor, :kill)
    wait(counter)
    System.halt(0)
  end

  # Requests in flight.
  defp wait(counter) do
    if :counters.get(counter, 1) > 0 do
      Process.sleep(10)
      wait(counter)
    end
  end

  defp accept(listener, counter) do
    {:ok, connection} = :gen_tcp.accept(listener)
    child = spawn(fn -> receive(do: (:go -> requests(connection, counter))) end)
    :ok = :gen_tcp.controlling_process(connection, child)
    send(child, :go)
    accept(listener, counter)
  end

  defp requests(connection, counter) do
    with {:ok, {:http_request, _, {:abs_path, path}, _}} <- :gen_tcp.recv(connection, 0),
         :counters.add(counter, 1, 1),
         close <- headers(connection, false) or :persistent_term.get(:draining, false),
         :ok <- answer(connection, path, close) do
      :counters.sub(counter, 1, 1)
      if close, do: :gen_tcp.close(connection), else: requests(connection, counter)
    end
  end

  defp headers(connection, close) do
    case :gen_tcp.recv(connection, 0) do
      {:ok, {:http_header, _, :Connection, _, "close"}} -> headers(connection, true)
      {:ok, {:http_header, _, _, _, _}} -> headers(connection, close)
      _ -> close
    end
  end

  defp answer(connection, path, close) do
    case path do
      "/slow" ->
        File.write!(System.get_env("IN_FLIGHT"), "")
        Process.sleep(1000)

      _ ->
        :ok
    end

    body = "Hello from Elixir"

    :gen_tcp.send(connection, [
      "HTTP/1.1 200 OK\r\ncontent-length: #{byte_size(body)}\r\n",
      if(close, do: "connection: close\r\n", else: ""),
      "x-prefork-generation: #{System.get_env("PREFORK_GENERATION")}\r\n",
      "x-prefork-pid: #{System.pid()}\r\n\r\n",
      body
    ])
  end
end

if File.exists?(System.get_env("BROKEN", "")), do: raise("broken")
Process.sleep(round(1000 * elem(Float.parse(System.get_env("START_DELAY", "0")), 0)))
:ok = Stop.install(self())
{:ok, listener} = :gen_tcp.listen(0, [:binary, fd: 3, active: false, packet: :http_bin])
Server.serve(listener)
